/**
 * Getting a job the mounted entry of its image: one mount for the node, and a view of it for the job's user.
 *
 *   1. The image's identity, as its user sees the file now (image-source.ts), names the entry. So a job gets
 *      only what its user can read at that moment.
 *   2. The entry is there: hold it, and see to it that it is mounted and that the user has a view (views.ts).
 *   3. Else a child makes it ready (ready-image.ts), and the first two are done once more.
 *
 * Whatever fails here is a reason to unpack the image for the user, as without mounted entries. A module of
 * its own: a site without `trusted_images` does not load it.
 */
import { closeSync } from 'node:fs';
import { describeError } from '../core/faults.ts';
import { parseJsonObject } from '../core/json.ts';
import { mountedEntryName } from '../core/layout.ts';
import { isBelowTrusted, isRefused } from '../core/mounted-facts.ts';
import type { EffectiveIsolation } from '../core/node-facts.ts';
import { createLimitMs, type Settings } from '../core/settings.ts';
import { isVouchedFor, type SquashfsSource } from '../image/image-source.ts';
import type { UserIds } from '../system/as-user.ts';
import { startInBackground } from '../system/background.ts';
import { elapsedMs } from '../system/clock.ts';
import type { Directory } from '../system/directory.ts';
import { splitLines } from '../system/lines.ts';
import { endingWithUs, run } from '../system/run-command.ts';
import { selfCommand } from '../system/self.ts';
import type { Acquired } from './entry.ts';
import { holdMounted, noteMountedUse, touchMounted, type HeldMounted } from './mounted-store.ts';
import { ensureView } from './views.ts';

interface MountRequest {
  readonly settings: Settings;
  readonly base: Directory;
  readonly user: UserIds;
  readonly source: SquashfsSource;
  readonly configPath: string | undefined;
  /** What containers get on this node: only an overlay takes a view. */
  readonly findIsolation: () => Promise<EffectiveIsolation | undefined>;
  readonly onPercent: (percent: number) => void;
  /** In case a step wants it: that is no use. */
  readonly isPrepared?: boolean;
}

/**
 * `making`: it is made ready in the background (create_mode=background). `reason`: it is not mounted, and
 * why.
 */
type Mounted = { readonly acquired: Acquired } | { readonly reason: string | undefined } | 'making';

/** @returns `reason` undefined: the image is none that would be mounted */
export async function obtainMounted(request: MountRequest): Promise<Mounted> {
  const { source, settings, user } = request;
  if (!isBelowTrusted(source.realPath, settings.trustedImages))
    return isBelowTrusted(source.path, settings.trustedImages)
      ? { reason: whyElsewhere(source) }
      : { reason: undefined };
  const unserved = await whyNoViews(request);
  if (unserved !== undefined) return { reason: unserved };
  if (user.uid === 0) return { reason: 'root has an entry of its own' };
  try {
    return await findOrMake(request);
  } catch (error) {
    return { reason: describeError(error) };
  }
}

const whyElsewhere = ({ path, realPath }: SquashfsSource): string =>
  `it ${path === realPath ? 'is' : `leads to "${realPath}", which is`} in no directory of trusted_images`;

async function whyNoViews({
  findIsolation,
}: Pick<MountRequest, 'findIsolation'>): Promise<string | undefined> {
  const isolation = await findIsolation();
  return isolation === 'overlay'
    ? undefined
    : `isolation=${isolation ?? 'unknown'} on this node, want overlay`;
}

/** Nobody has done anything wrong: the image is unpacked for each user. */
export class NotMounted extends Error {
  override readonly name = 'NotMounted';
}

/**
 * Makes an image ready for whoever will want it: no user is there who could have a view.
 *
 * @param request its source as root sees it
 * @throws NotMounted
 */
export async function readyForAll(
  request: Omit<MountRequest, 'user'>,
): Promise<Pick<Acquired, 'result' | 'unpackMs'> & { readonly name: string }> {
  const { source, settings, base } = request;
  if (!isBelowTrusted(source.realPath, settings.trustedImages)) throw new NotMounted(whyElsewhere(source));
  const unserved = await whyNoViews(request);
  if (unserved !== undefined) throw new NotMounted(unserved);
  const name = mountedEntryName(source.identity);
  const startedAtMs = elapsedMs();
  // That an image is still mounted in place, only the child sees to.
  const { outcome, reason } = await askChild(request, name);
  if (reason !== undefined) throw new NotMounted(reason);
  const held = await holdMounted(base.path, name);
  if (held === undefined) throw new NotMounted('it was evicted at once');
  closeSync(held.fd);
  if (held.facts.refusal !== undefined) throw new NotMounted(held.facts.refusal.reason);
  touchMounted(base.path, name);
  return outcome === 'made'
    ? { name, result: 'created', unpackMs: Math.round(elapsedMs() - startedAtMs) }
    : { name, result: 'reused', unpackMs: undefined };
}

async function findOrMake(request: MountRequest): Promise<Mounted> {
  const startedAtMs = elapsedMs();
  const { settings, base, source } = request;
  if (!(await isVouchedFor(request.user, source)))
    return { reason: 'our look at it got no answer: is its filesystem slow, or the user unknown here?' };
  const name = mountedEntryName(source.identity);
  const held = await holdMounted(base.path, name);
  const found = held && (await useHeld(request, name, held));
  if (found !== undefined) return found;
  // Whether it fits is known: what is left takes no time that a job would notice.
  const isQuick = held?.isWhole === true && held.facts.refusal === undefined;
  if (settings.createMode === 'background' && !isQuick) {
    startInBackground(['ready-image', name, source.realPath], request.configPath, '/');
    return 'making';
  }
  const { outcome, reason } = await askChild(request, name);
  if (reason !== undefined) return { reason };
  const made = await holdMounted(base.path, name);
  const used = made && (await useHeld(request, name, made));
  if (used === undefined) return { reason: 'it was evicted at once' };
  if (!('acquired' in used)) return used;
  const readyMs = Math.round(elapsedMs() - startedAtMs);
  const how =
    outcome === 'made'
      ? ({ result: 'created', unpackMs: readyMs } as const)
      : ({ result: 'waited' } as const);
  return { acquired: { ...used.acquired, ...how } };
}

/** @returns undefined: it must be made ready first; then it is not held any more */
async function useHeld(
  request: MountRequest,
  name: string,
  { fd, facts, isWhole }: HeldMounted,
): Promise<{ readonly acquired: Acquired } | { readonly reason: string } | undefined> {
  const { settings, base, user, source } = request;
  let isUsed = false;
  try {
    if (facts.refusal !== undefined) {
      if (!isRefused(facts.refusal, Date.now())) return undefined;
      touchMounted(base.path, name);
      return { reason: facts.refusal.reason };
    }
    if (!isWhole) return undefined;
    const path = await ensureView({
      basePath: base.path,
      runtimePath: settings.runtimePath,
      user,
      name,
      limitMs: createLimitMs(settings, source.sizes),
    });
    if (path === undefined) return undefined;
    if (!request.isPrepared) {
      touchMounted(base.path, name);
      noteMountedUse(base.path, user.uid, name);
    }
    isUsed = true;
    return { acquired: { entry: { name, path, fd }, result: 'reused', unpackMs: undefined } };
  } finally {
    if (!isUsed) closeSync(fd);
  }
}

interface ChildAnswer {
  readonly outcome: string | undefined;
  readonly reason: string | undefined;
}

/** @throws CommandFailed */
async function askChild(
  {
    settings,
    source,
    configPath,
    onPercent,
  }: Pick<MountRequest, 'settings' | 'source' | 'configPath' | 'onPercent'>,
  name: string,
): Promise<ChildAnswer> {
  const answer: { outcome?: string; reason?: string } = {};
  const lines = splitLines((line) => {
    const { percent, outcome, reason } = parseJsonObject(line) ?? {};
    if (typeof percent === 'number') onPercent(percent);
    if (typeof outcome === 'string') answer.outcome = outcome;
    if (typeof reason === 'string') answer.reason = reason;
  }, 'utf8');
  const self = selfCommand();
  await run(
    endingWithUs({
      file: self.file,
      program: 'ready-image',
      args: [...self.args, 'ready-image', name, source.realPath],
      timeoutMs: createLimitMs(settings, source.sizes),
      environment: configPath === undefined ? {} : { CONTAINER_CACHE_CONF: configPath },
      onStdout: lines.add,
    }),
  );
  lines.end();
  return { outcome: answer.outcome, reason: answer.reason };
}
