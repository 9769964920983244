/** Can this node mount the images of `trusted_images`, and which of them would it refuse? */
import { closeSync, existsSync, readFileSync, realpathSync } from 'node:fs';
import { describeError } from '../../lib/core/faults.ts';
import { createLimitMs } from '../../lib/core/settings.ts';
import { isServed, listMounted } from '../../lib/store/mounted-store.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { CommandFailed, run } from '../../lib/system/run-command.ts';
import { openTrustedFile } from '../../lib/system/trusted-file.ts';
import { answers, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('mounted');

export const checkMounted: Check = async (context) => {
  const { settings, isRoot } = context;
  if (settings.trustedImages.length === 0) return [];
  if (!isRoot) return [report.skip('only root can look at trusted_images', 'run this command as root')];
  const findings: Finding[] = [...kernelFindings(), ...copyFindings(context)];
  for (const directory of settings.trustedImages)
    findings.push(...(await directoryFindings(context, directory)));
  return [...findings, ...refusalFindings(context)];
};

function kernelFindings(): Finding[] {
  const filesystems = readFileSync('/proc/filesystems', 'latin1');
  return [
    existsSync('/dev/loop-control')
      ? report.ok('the kernel has loop devices')
      : report.bad('there is no /dev/loop-control: no image can be mounted', 'modprobe loop'),
    /\tsquashfs$/m.test(filesystems)
      ? report.ok('the kernel reads squashfs')
      : report.warn(
          'the kernel has not loaded squashfs; the first mount loads it, if the kernel has it',
          'modprobe squashfs',
        ),
  ];
}

function copyFindings({ settings: { imageCopying } }: CheckContext): Finding[] {
  return imageCopying === 'never'
    ? [
        report.warn(
          'trusted_images_copy=never: an image that is overwritten in place breaks the containers that run from it',
          'replace images by a rename (mv), never by a write into the file',
        ),
      ]
    : [];
}

const mostImages = 200;
const shownImages = 5;

async function directoryFindings({ settings }: CheckContext, directory: string): Promise<Finding[]> {
  if (!(await answers(directory)))
    return [
      report.bad(`${directory} does not answer`, 'check its file server, or take it out of trusted_images'),
    ];
  const real = unlessErrno([...isGone, 'EACCES'], () => realpathSync(directory));
  if (real === undefined)
    return [report.warn(`${directory} of trusted_images does not exist`, 'make it, or take it out')];
  if (real !== directory)
    return [
      report.bad(
        `${directory} leads to ${real}, so no image in it is mounted`,
        `in trusted_images write ${real}`,
      ),
    ];
  const images = await listImages(directory, createLimitMs(settings, { claimedBytes: 0, writtenBytes: 0 }));
  if (images === undefined)
    return [report.skip(`${directory} could not be listed`, 'look whether its filesystem answers')];
  const refused = images.flatMap((path) => {
    const reason = whyUntrusted(path, settings.trustedOwners);
    return reason === undefined ? [] : [{ path, reason }];
  });
  if (refused.length === 0) return [report.ok(`${directory}: ${images.length} images, all can be trusted`)];
  const reasons = [...new Set(refused.map(({ reason }) => reason))];
  return reasons.slice(0, shownImages).map((reason) => {
    const paths = refused.filter((one) => one.reason === reason).map(({ path }) => path);
    const others = paths.length > 1 ? ` and ${paths.length - 1} more` : '';
    return report.warn(
      `${paths[0] ?? directory}${others}: not mounted, but unpacked for each user: ${reason}`,
      'chown root and chmod go-w what it names, or name its owner in trusted_owners',
    );
  });
}

async function listImages(directory: string, timeoutMs: number): Promise<string[] | undefined> {
  const names = ['(', '-name', '*.sqsh', '-o', '-name', '*.squashfs', '-o', '-name', '*.sqfs', ')'];
  const args = [directory, '-xdev', '-maxdepth', '4', '-type', 'f', ...names, '-print0'];
  try {
    const { stdout } = await run({ file: 'find', args, timeoutMs });
    return stdout.toString('utf8').split('\0').filter(Boolean).slice(0, mostImages);
  } catch (error) {
    if (error instanceof CommandFailed) return undefined;
    throw error;
  }
}

function whyUntrusted(path: string, owners: readonly number[]): string | undefined {
  try {
    closeSync(openTrustedFile(path, owners).fd);
    return undefined;
  } catch (error) {
    return describeError(error);
  }
}

/** What jobs have met since the last boot, or lately. */
function refusalFindings({ settings }: CheckContext): Finding[] {
  return listMounted(settings.basePath)
    .filter((found) => !isServed(found))
    .slice(0, shownImages)
    .map(({ facts }) =>
      report.warn(
        `${facts.image}: not mounted, but unpacked for each user: ${facts.refusal?.reason ?? ''}`,
        'OPERATIONS.md has the reasons; an image that is made with mksquashfs -all-root has one owner',
      ),
    );
}
