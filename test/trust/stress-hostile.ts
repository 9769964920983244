/**
 * The hostile user of the stress test, who has jobs like everybody, and does all of hostile-tricks.ts before,
 * during and after them. What becomes of these jobs is nobody's promise; that the node's programs end with 0
 * and tell of it in lines of this user is.
 */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoNames } from '../../lib/core/errno-names.ts';
import { readLease } from '../../lib/store/lease.ts';
import { processUid } from '../../lib/system/processes.ts';
import {
  holders,
  kill,
  processes,
  until,
  type JobRequest,
  type ProgramResult,
  type TestNode,
  programPath,
} from '../helpers/node.ts';
import { alice, command } from '../helpers/private-machine.ts';
import { unlessStrace } from '../helpers/suite.ts';
import { injecting, isInjectedBelow, pointsBelow, straceOf, type Point } from './error-points.ts';
import { HostileProcesses, lyingEnvironment, oddImage, type Aims, type Scene } from './hostile-tricks.ts';
import type { HostilePlan, TrickPlan } from './stress-plan.ts';
import { startAsUser } from './user-program.ts';

/** The user is none of those whose jobs must be served. */
export const hostileUser = alice;

interface Judge {
  readonly expect: (holdsTrue: boolean, where: string, text: string) => void;
  readonly checkLines: (result: ProgramResult, where: string) => void;
}

interface Surroundings {
  readonly node: TestNode;
  readonly wrapperPath: string;
  /** Where a file of a job's number says that the job is over. */
  readonly overPath: string;
  readonly judge: Judge;
  readonly aims: () => Aims;
}

type Program = 'prolog' | 'epilog';
type Points = Readonly<Record<Program, readonly Point[]>>;

/** No other job has it. */
const tracedJobId = 999_999_998;

/** Then the job is cancelled: locks that are held for ever would keep its Prolog for long. */
const longestPrologMs = 3000;
const longestStepMs = 5000;

export class HostileUser {
  readonly #around: Surroundings;
  readonly #processes = new HostileProcesses(hostileUser);
  #failedCalls = 0;
  #points: Promise<Points> | undefined;

  constructor(around: Surroundings) {
    this.#around = around;
  }

  get counts(): Readonly<Record<'tricks' | 'tricksRefused' | 'failedCalls', number>> {
    const { played, refused } = this.#processes;
    return { tricks: played, tricksRefused: refused, failedCalls: this.#failedCalls };
  }

  /** Finds the system calls that can be made to fail, by a Prolog and an Epilog of another job. */
  async #findPoints(image: string): Promise<Points> {
    if (unlessStrace !== undefined) return { prolog: [], epilog: [] };
    const { node } = this.#around;
    const trace = join(node.root, 'trace');
    const find = async (program: Program): Promise<readonly Point[]> => {
      await node[program]({ id: tracedJobId, user: hostileUser, image, wrapper: straceOf(trace) });
      return pointsBelow(node.userPath(hostileUser), readFileSync(trace, 'utf8'));
    };
    return { prolog: await find('prolog'), epilog: await find('epilog') };
  }

  async runJob(id: number, plan: HostilePlan, imagePath: string): Promise<void> {
    const { node, judge, aims } = this.#around;
    const where = `job ${id} of the hostile user`;
    const home = node.userPath(hostileUser);
    const scene: Scene = { user: hostileUser, home, runtimePath: node.runtimePath, jobId: id, aims };
    const image = plan.oddImage === undefined ? imagePath : oddImage(scene, plan.oddImage);
    const job = { id, user: hostileUser, image: image.slice(0, 4096) };
    await this.#play(scene, plan, 'before');
    await this.#run('prolog', job, scene, plan, where);
    await Promise.all([this.#play(scene, plan, 'steps'), this.#runSteps(scene, plan, imagePath)]);
    const isWhole = await this.#run('epilog', job, scene, plan, where);
    // What a failed system call has kept from the first one, the second one does.
    if (!isWhole) await node.epilog(job);
    const left = holders(id).filter(({ pid }) => processUid(pid) === 0);
    judge.expect(left.length === 0, where, `I6: after the Epilog root holds for it: ${JSON.stringify(left)}`);
    judge.expect(
      readLease(node.runtimePath, id) === undefined,
      where,
      'I19: after the Epilog the lease is there',
    );
  }

  async #play(scene: Scene, { tricks }: HostilePlan, during: TrickPlan['during']): Promise<void> {
    const playing = tricks.filter((trick) => trick.during === during);
    await Promise.all(
      playing.map(async ({ afterMs, seed }) => {
        await sleep(afterMs);
        this.#processes.play(scene, seed);
      }),
    );
  }

  /** @returns whether no system call of it was made to fail */
  async #run(of: Program, job: JobRequest, scene: Scene, plan: HostilePlan, where: string): Promise<boolean> {
    const { node, judge, overPath } = this.#around;
    const trace = join(node.root, `trace-${job.id}`);
    const failing = plan.failure?.of === of ? await this.#failing(plan.failure, job) : undefined;
    const wrapper = failing && straceOf(trace, ...failing);
    const request = wrapper === undefined ? job : { ...job, wrapper };
    const program = of === 'prolog' ? node.startProlog(request) : node.startEpilog(request);
    const overFile = join(overPath, String(job.id));
    const cancelling = setTimeout(() => {
      writeFileSync(overFile, '');
    }, longestPrologMs);
    const [result] = await Promise.all([program.result, this.#play(scene, plan, of)]);
    clearTimeout(cancelling);
    rmSync(overFile, { force: true });
    const isTheirs = failing === undefined || isInjectedBelow(scene.home, readFileSync(trace, 'utf8'));
    const { exitCode, signal, line, stderr } = result;
    // A call that failed elsewhere may well have been the node's.
    if (failing !== undefined && isTheirs) this.#failedCalls++;
    if (isTheirs) {
      judge.checkLines(result, where);
      const what = `${of} with ${failing?.join(' ') ?? 'tricks'}: exit code ${exitCode} ${signal}: ${stderr}`;
      judge.expect(exitCode === 0 && signal === null, where, `I16: ${what}`);
      judge.expect(line['result'] !== undefined && line['code'] !== 'BUG', where, what);
    }
    rmSync(trace, { force: true });
    return failing === undefined;
  }

  async #failing(
    { of, point, error }: NonNullable<HostilePlan['failure']>,
    { image = '' }: JobRequest,
  ): Promise<readonly string[] | undefined> {
    this.#points ??= this.#findPoints(image);
    const points = (await this.#points)[of];
    const chosen = points[point % points.length];
    return chosen && injecting(chosen, errnoNames[error % errnoNames.length]!);
  }

  async #runSteps(scene: Scene, { liesSeed }: HostilePlan, image: string): Promise<void> {
    const { node, wrapperPath } = this.#around;
    const environment = lyingEnvironment(scene, liesSeed);
    const name = `pyxis_${scene.jobId}.0`;
    const commands: [string, ...string[]][] = [
      [wrapperPath, 'create', '--name', name, image],
      [wrapperPath, 'start', name],
      [programPath('container-cache'), 'acquire', image],
      [wrapperPath, 'remove', '-f', name],
    ];
    for (const one of commands.slice(liesSeed % 2, 2 + (liesSeed % 3))) {
      const request = {
        user: hostileUser,
        jobId: scene.jobId,
        stepId: 0,
        limitMs: longestStepMs,
        environment,
      };
      const program = startAsUser(node, request, one);
      program.end();
      await program.result;
    }
  }

  /** Ends whatever runs as this user. */
  async endAll(): Promise<void> {
    await until('nothing of the hostile user runs', () => {
      const own = processes().filter(({ pid }) => processUid(pid) === hostileUser.uid);
      for (const { pid } of own) kill(pid);
      return own.length === 0;
    });
  }

  removeAll(): void {
    command('rm', '--recursive', '--force', this.#around.node.userPath(hostileUser));
  }
}
