/**
 * Races are forced: a program that ours start is held at its start, until the test has done what is to happen
 * meanwhile.
 */
import { chmodSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { until } from './node.ts';
import { machineRoot, replaceProgram } from './private-machine.ts';

interface HoldOptions {
  /** Hold it only if its parameters match this pattern of the shell. */
  readonly where?: string;
  /** Shell commands before the wait, with the program's parameters in "$@". */
  readonly first?: string;
  /** What it does when let go; default: the real program, `exec /usr/bin/NAME "$@"`. */
  readonly then?: string;
}

/** A program of /usr/bin that waits whenever it is started, at most as long as this object lives. */
export class HeldProgram implements Disposable {
  readonly #directory: string;
  readonly #replacement: Disposable;

  constructor(
    name: string,
    { where = '*', first = '', then = `exec /usr/bin/${name} "$@"` }: HoldOptions = {},
  ) {
    this.#directory = mkdtempSync(join(machineRoot, 'held-'));
    // It may run as a user.
    chmodSync(this.#directory, 0o777);
    // In a PID namespace its own number is 1; /proc has that of ours.
    const wait = `read -r pid _ </proc/self/stat; : >"${this.#directory}/$pid"; while [ -d "${this.#directory}" ] && [ ! -e "${this.#directory}/go" ]; do sleep 0.01; done`;
    this.#replacement = replaceProgram(
      name,
      `case "$*" in ${where.replaceAll(' ', '\\ ')}) ${first}\n${wait}; ${then};; esac\nexec /usr/bin/${name} "$@"`,
    );
  }

  /** The processes that wait or waited. */
  pids(): number[] {
    return readdirSync(this.#directory)
      .filter((name) => name !== 'go')
      .map(Number);
  }

  /** Resolves when that many have come to wait. */
  async started(count = 1): Promise<void> {
    await until(`${count} of the held program have started`, () => this.pids().length >= count);
  }

  /** Lets those that wait go on, and all that come. */
  letGo(): void {
    writeFileSync(join(this.#directory, 'go'), '');
  }

  [Symbol.dispose](): void {
    this.#replacement[Symbol.dispose]();
    rmSync(this.#directory, { recursive: true });
  }
}
