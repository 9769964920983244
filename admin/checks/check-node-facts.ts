/** Does what the wrapper is told about this node agree with the configuration? */
import { statSync } from 'node:fs';
import { describeError } from '../../lib/core/faults.ts';
import { nodeFactsPath } from '../../lib/core/layout.ts';
import type { NodeFacts } from '../../lib/core/node-facts.ts';
import type { Settings } from '../../lib/core/settings.ts';
import { mountsFileName, readNodeFacts } from '../../lib/store/node-facts-file.ts';
import { hasRoomAgent } from '../../lib/store/room-presence.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { haveSameContent, isRegularFile } from '../../lib/system/programs.ts';
import { accessFault, answers, installDirectory, type Check } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('node');
const remake = 'delete it: the next job with a container writes it again';

export const checkNodeFacts: Check = async ({ settings, executable, isRoot }) => {
  const path = nodeFactsPath(settings.runtimePath);
  if (!(await answers(path)))
    return [report.bad(`${path} does not answer`, 'set runtime_dir to a directory below /run')];
  if (unlessErrno([...isGone, 'EACCES'], () => statSync(path)) === undefined)
    return [report.ok(`${path} does not exist yet: the first Prolog writes it`)];
  let facts;
  try {
    facts = readNodeFacts(settings.runtimePath);
  } catch (error) {
    return [report.bad(`${path}: ${describeError(error)}`, remake)];
  }
  if (facts === undefined) return [report.bad(`${path} is damaged, or another program wrote it`, remake)];
  const fault = accessFault(report, path, 'read');
  return [
    fault ?? agreement(path, facts, settings, executable),
    isolationFinding(facts, settings),
    ...(isRoot && facts.isolation !== 'off' ? [agentFinding(settings)] : []),
  ];
};

function agreement(
  path: string,
  facts: NodeFacts,
  settings: Settings,
  executable: string | undefined,
): Finding {
  const expected: readonly (readonly [string, string | undefined, string | undefined])[] = [
    ['base_path', facts.basePath, settings.basePath],
    ['enroot_path', facts.enrootPath, settings.enrootPath ?? facts.enrootPath],
    ['image_freshness', facts.imageFreshness, settings.imageFreshness],
    ['mounts_file', facts.mountsFile, `${settings.enrootSysconfPath}/mounts.d/${mountsFileName}`],
  ];
  const differing = expected.filter(([, found, wanted]) => found !== wanted);
  const [first] = differing;
  if (first !== undefined) {
    const [key, found = 'nothing', wanted = 'nothing'] = first;
    return report.warn(
      `${path} says ${key}=${found}, but the configuration says ${wanted}: it has changed since`,
      remake,
    );
  }
  if (facts.command !== undefined && !isRegularFile(facts.command))
    return report.bad(
      `${path} names ${facts.command}, which does not exist`,
      `install it there, or ${remake}`,
    );
  if (facts.command !== undefined && executable !== undefined && !haveSameContent(facts.command, executable))
    return report.warn(
      `${path}: jobs start ${facts.command}, which is another build than this command`,
      `install one build everywhere; for the file, ${remake}`,
    );
  if (facts.command === undefined && executable !== undefined)
    return report.bad(
      `${path}: the Prolog found no executable that users can start, so the cache does not serve an srun inside a job`,
      `chmod o+rx the Prolog and the directories above it, or install ${installDirectory({ executable })}/container-cache; ` +
        `for the file, ${remake}`,
    );
  return report.ok(`${path} agrees with the configuration`);
}

/** Each Prolog starts one where none is. */
const agentFinding = ({ runtimePath }: Settings): Finding =>
  hasRoomAgent(runtimePath)
    ? report.ok('the room agent runs and makes room for steps (container-cache-room in ps)')
    : report.ok(
        'no room agent runs now; the next Prolog starts one, and until then nobody makes room for steps',
      );

function isolationFinding({ isolation, reason }: NodeFacts, settings: Settings): Finding {
  const because = reason === undefined ? '' : `: ${reason}`;
  if (isolation === settings.isolation && isolation !== 'off') return report.ok(`isolation=${isolation}`);
  if (settings.isolation === 'off' || isolation === 'off') {
    const text = `isolation is off${because}: enroot unpacks for every container, and the cache serves none`;
    return settings.isolation === 'off'
      ? report.warn(text, 'set isolation=auto in the configuration')
      : report.bad(
          text,
          `correct what it says, then delete the file: the next job with a container writes it again`,
        );
  }
  if (settings.isolation !== 'auto')
    return report.warn(
      `isolation=${isolation} is in effect, but isolation=${settings.isolation} is configured`,
      remake,
    );
  return isolation === 'overlay'
    ? report.ok('isolation=overlay')
    : report.warn(
        `isolation=${isolation}${because}`,
        'see the lines of base; then delete the file, and the next Prolog tries again',
      );
}
