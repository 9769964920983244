/** overlay-hindrance.ts: the reason is named by the switch that an administrator turns. */
import { overlayHindrance, type OverlayFacts } from '../../../admin/checks/overlay-hindrance.ts';
import { assert, suite } from '../../helpers/suite.ts';

const free: OverlayFacts = {
  kernelRelease: '6.8.0-45-generic',
  hasOverlay: true,
  maxUserNamespaces: '96365',
  maxMountNamespaces: '96365',
  unprivilegedUsernsClone: '1',
  apparmorRestricts: '0',
  filesystem: 'ext4',
};

const test = suite('overlayHindrance()');

test('there is none where nothing is forbidden, or the kernel has no such switches', () => {
  assert.is(overlayHindrance(free), undefined);
  const absent = { maxUserNamespaces: undefined, maxMountNamespaces: undefined };
  assert.is(
    overlayHindrance({
      ...free,
      ...absent,
      unprivilegedUsernsClone: undefined,
      apparmorRestricts: undefined,
    }),
    undefined,
  );
});

for (const [facts, what] of [
  [{ kernelRelease: '4.18.0-553.el8_10.x86_64' }, /^Linux 4\.18/],
  [{ kernelRelease: '5.10.0' }, /^Linux 5\.10/],
  [{ unprivilegedUsernsClone: '0' }, /^kernel\.unprivileged_userns_clone is 0/],
  [{ maxUserNamespaces: '0' }, /^user\.max_user_namespaces is 0/],
  [{ maxMountNamespaces: '0' }, /^user\.max_mnt_namespaces is 0/],
  [{ apparmorRestricts: '1' }, /^kernel\.apparmor_restrict_unprivileged_userns is 1/],
  [{ hasOverlay: false }, /module overlay/],
  [{ filesystem: 'overlay' }, /is on an overlay/],
] as const) {
  test(`names ${JSON.stringify(facts)}, and what to do`, () => {
    const found = overlayHindrance({ ...free, ...facts });
    assert.match(found?.what ?? '', what);
    assert.ok((found?.remedy ?? '').length > 0);
  });
}

test('of several it names the one that comes first', () => {
  const found = overlayHindrance({ ...free, kernelRelease: '5.4.0', maxUserNamespaces: '0' });
  assert.match(found?.what ?? '', /^Linux/);
});

test.run();
