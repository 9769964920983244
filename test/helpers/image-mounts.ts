/** Whether images can be mounted on this machine, and what of them is mounted. */
import { closeSync, existsSync, mkdtempSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { attachMount, makeView, mountImage, unmountAtOnce } from '../../lib/system/mounting.ts';
import { alice, command, machineRoot, unlessPrivateMachine } from './private-machine.ts';
import { makeImage } from './squashfs-image.ts';

/** For SuiteOptions.skip. To be called inside a private machine. */
export function unlessImageMounts(): string | undefined {
  if (unlessPrivateMachine !== undefined) return unlessPrivateMachine;
  if (!existsSync('/dev/loop-control')) return 'needs /dev/loop-control';
  const root = mkdtempSync(join(machineRoot, 'probe-'));
  for (const name of ['image', 'view']) mkdirSync(join(root, name));
  try {
    const file = openSync(makeImage(join(root, 'a.sqsh')), 'r');
    const mounted = mountImage(file);
    closeSync(file);
    attachMount(mounted, join(root, 'image'));
    closeSync(mounted);
    makeView(join(root, 'image'), join(root, 'view'), alice);
    unmountAtOnce(join(root, 'view'));
    unmountAtOnce(join(root, 'image'));
    return undefined;
  } catch (error) {
    return `needs idmapped mounts of squashfs (Linux 6.2): ${(error as Error).message}`;
  }
}

/** Mount points below a directory, as this namespace has them. */
export const mountPointsBelow = (path: string): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .flatMap((line) => line.split(' ')[4] ?? [])
    .filter((point) => point.startsWith(`${path}/`))
    .map((point) => point.slice(path.length + 1))
    .sort();

/** Loop devices in use whose file is below a directory, which no other test has. */
export const loopDevicesOf = (directory: string): string[] =>
  command('losetup', '--list', '--noheadings', '--output', 'BACK-FILE')
    .split('\n')
    .filter((line) => line.includes(`${directory}/`));
