/** path-safety.ts on real directories, links and owners: who else can change what a path leads to. */
import {
  chmodSync,
  chownSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { errnoOf } from '../../../lib/system/errno.ts';
import { followSafely, whoCannotReach, whoElseCanChange } from '../../../lib/system/path-safety.ts';
import {
  alice,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

let root: string;
const at = (path: string): string => join(root, path);

const safety = suite('path-safety', { skip: unlessPrivateMachine });

safety.before.each(() => {
  root = realpathSync(mkdtempSync(join(machineRoot, 'path-safety-')));
  chmodSync(root, 0o755);
  for (const path of ['shared', 'own', 'own/deep']) mkdirSync(at(path), { mode: 0o755 });
  chmodSync(at('shared'), 0o1777);
  writeFileSync(at('own/deep/file'), '', { mode: 0o644 });
});
safety.after.each(() => {
  rmSync(root, { recursive: true });
});

const found = (...parameters: Parameters<typeof whoElseCanChange>): string | undefined => {
  const fault = whoElseCanChange(...parameters);
  return fault === undefined ? undefined : `${fault.path.slice(root.length)}: ${fault.found}; ${fault.cure}`;
};

safety('what only root can change is safe, by root’s symlinks too, wherever they lead', () => {
  symlinkSync('own/../own/./deep', at('link'));
  symlinkSync(at('link/file'), at('absolute'));
  symlinkSync('/', at('top'));
  for (const path of ['own/deep/file', 'link/file', 'absolute', 'top'])
    assert.is(found(at(path)), undefined, path);
  assert.equal(
    ['link/file', 'absolute', 'top', 'own'].map((path) => followSafely(at(path))),
    [at('own/deep/file'), at('own/deep/file'), '/', at('own')],
  );
});

safety('the first on the way that others can change is named, with the least that helps', () => {
  chmodSync(at('own/deep'), 0o777);
  assert.is(found(at('own/deep/file')), `/own/deep: owned by uid 0, mode 0777; chmod +t ${at('own/deep')}`);
  chownSync(at('own'), alice.uid, alice.gid);
  assert.match(found(at('own/deep/file'))!, `/own: owned by uid ${alice.uid}, mode 0755; chown root`);
  assert.throws(
    () => followSafely(at('own/deep/file')),
    Error,
    /on its way .*\/own is owned by uid \d+, mode 0755$/,
  );
});

safety('a sticky directory is safe above what is meant, not as what is meant', () => {
  assert.is(found(at('shared'), 'above'), undefined);
  assert.is(found(at('shared')), `/shared: owned by uid 0, mode 1777; chmod go-w ${at('shared')}`);
  mkdirSync(at('shared/of-root'), { mode: 0o755 });
  assert.is(found(at('shared/of-root')), undefined);
});

safety('a symlink of a user is the user’s to replace, whatever it leads to', () => {
  symlinkSync(at('own/deep/file'), at('shared/link'));
  assert.is(found(at('shared/link')), undefined);
  lchownSync(at('shared/link'), alice.uid, alice.gid);
  assert.is(
    found(at('shared/link')),
    `/shared/link: owned by uid ${alice.uid}, mode 0777; chown -h root ${at('shared/link')}`,
  );
  assert.throws(() => followSafely(at('shared/link')), Error, /link is owned by uid/);
});

safety('where there may be directories alone, a symlink is named before it is followed', () => {
  symlinkSync('/nowhere/at/all', at('link'));
  assert.is(
    found(at('link/below'), 'only directories'),
    '/link: no directory; name the directory that it leads to',
  );
  assert.is(found(at('own/deep'), 'only directories'), undefined);
});

safety('what leads nowhere, or in a circle, is an error', () => {
  symlinkSync('circle', at('circle'));
  assert.throws(() => whoElseCanChange(at('circle')), Error, /more than 40 symlinks$/);
  assert.is(errnoOf(assert.throws(() => whoElseCanChange(at('own/none')), Error)), 'ENOENT');
});

safety('who cannot get there is told by the first that is closed', () => {
  symlinkSync('own/deep/file', at('link'));
  assert.is(whoCannotReach(at('link'), 0o4), undefined);
  assert.equal(whoCannotReach(at('link'), 0o5), {
    path: at('own/deep/file'),
    found: 'owned by uid 0, mode 0644',
  });
  chmodSync(at('own/deep'), 0o700);
  assert.equal(whoCannotReach(at('link'), 0o4), { path: at('own/deep'), found: 'owned by uid 0, mode 0700' });
});

safety.run();
