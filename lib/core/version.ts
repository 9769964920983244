/** Version numbers of the programs we stand between. */

/** Leading numbers, as many as there are: `slurm-wlm 22.05.8` is [22, 5, 8]. */
export type Version = readonly number[];

/** @returns the first version number with at least one dot in a text */
export function parseVersion(text: string): Version | undefined {
  return /(?<!\d)\d+(?:\.\d+)+/.exec(text)?.[0].split('.').map(Number);
}

/** Whether `version` is `other` or newer; numbers that are missing count as 0. */
export function isAtLeast(version: Version, other: Version): boolean {
  for (let index = 0; index < Math.max(version.length, other.length); index++) {
    const difference = (version[index] ?? 0) - (other[index] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return true;
}
