/**
 * Expected failures, sorted by whose problem they are. A job's fault never makes the Prolog exit non-zero,
 * since that would drain a node for one user's mistake or malice: whatever a user can bring about is a job's
 * fault, also what a user can use up for everybody (a disk, processes, memory). Anything else that is thrown
 * is a bug of ours.
 */
import { errnoName, nameErrnos } from './errno-names.ts';

/** "Not for the cache": the job asked for something we leave to pyxis and enroot. */
const bypassCodes = [
  ...(['UNSUPPORTED_OPTION', 'BAD_REFERENCE', 'IMAGE_UNREADABLE', 'NOT_SQUASHFS'] as const),
  ...(['NOT_CACHED', 'UNPACKING', 'TOO_LARGE', 'REGISTRY_REFUSED'] as const),
] as const;

const jobFaultCodes = [
  ...bypassCodes,
  ...(['BAD_JOB', 'CANCELLED', 'IMAGE_CHANGED', 'UNPACK_FAILED', 'IMPORT_FAILED'] as const),
  ...(['REGISTRY_SILENT'] as const),
  ...(['CREATE_TIMEOUT', 'LOCK_TIMEOUT', 'ENTRY_DAMAGED'] as const),
  ...(['QUOTA_EXCEEDED', 'NO_SPACE', 'NO_RESOURCES', 'USER_UNKNOWN'] as const),
] as const;

/**
 * Why a job cannot be served from the cache, and a user may be the cause; the job runs as it would have
 * without us.
 */
type JobFaultCode = (typeof jobFaultCodes)[number];

export class JobFault extends Error {
  override readonly name = 'JobFault';
  readonly code: JobFaultCode;
  constructor(code: JobFaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

const nodeFaultCodes = [
  ...(['BAD_CONFIG', 'BASE_UNSAFE', 'BASE_UNFIT', 'DISK_FAILED'] as const),
  ...(['USER_DIRECTORY', 'TOOL_MISSING', 'LEASE_FAILED'] as const),
] as const;

/**
 * Why this node cannot serve any job, by what only root can bring about or a disk that fails. Remedies:
 * OPERATIONS.md.
 */
type NodeFaultCode = (typeof nodeFaultCodes)[number];

export class NodeFault extends Error {
  override readonly name = 'NodeFault';
  readonly code: NodeFaultCode;
  constructor(code: NodeFaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/**
 * Something failed below a user's directory (lib/system/beneath.ts), where only the user can have brought it
 * about: it is theirs with whichever error number. A base that is at fault itself is found out where no user
 * is in the way (lib/store/base-fault.ts).
 */
export class BeneathError extends Error {
  override readonly name = 'BeneathError';
  /** "ENOENT" and the like; undefined if something was not what it should be. */
  readonly code: string | undefined;
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = systemErrorOf(options?.cause);
  }
}

/** The codes under which a failure is logged and counted; `BUG` is anything we did not expect. */
export const faultCodes = [...jobFaultCodes, ...nodeFaultCodes, 'BUG'] as const;
export type FaultCode = (typeof faultCodes)[number];

export const isFaultCode = (value: unknown): value is FaultCode => faultCodes.some((code) => code === value);

export const isBypassCode = (code: FaultCode): boolean => bypassCodes.some((bypass) => bypass === code);

export function faultCode(error: unknown): FaultCode {
  if (error instanceof JobFault) return error.code;
  return (
    usedUpCode(error) ?? (error instanceof NodeFault ? error.code : isOfUser(error) ? 'ENTRY_DAMAGED' : 'BUG')
  );
}

/**
 * Whether a failure may drain the node: a list of what does. Whatever else fails, a user may be the cause.
 */
export function isFaultOfNode(error: unknown): boolean {
  return error instanceof NodeFault && usedUpCode(error) === undefined;
}

/** Whether it is but that something is used up, by whomever. */
export const isUsedUp = (error: unknown): boolean => usedUpCode(error) !== undefined;

const isOfUser = (error: unknown): boolean => chainOf(error).some((one) => one instanceof BeneathError);

/**
 * Error numbers of what is used up, be it by one user: the disk, /run by an import of pyxis, all processes by
 * a fork bomb.
 */
const usedUp: ReadonlyMap<string, JobFaultCode> = new Map([
  ['ENOSPC', 'NO_SPACE'],
  ['EDQUOT', 'QUOTA_EXCEEDED'],
  ...['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE'].map((code) => [code, 'NO_RESOURCES'] as const),
]);

/** The code for the error number of the first failed system call among an error and its causes. */
function usedUpCode(error: unknown): JobFaultCode | undefined {
  const errno = chainOf(error)
    .map(systemErrorOf)
    .find((one) => one !== undefined);
  return errno === undefined ? undefined : usedUp.get(errno);
}

/** @returns "ENOENT" and the like; undefined for what is no failed system call */
export function systemErrorOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  if ('code' in error && typeof error.code === 'string' && /^E[A-Z0-9]+$/.test(error.code)) return error.code;
  return 'errno' in error && typeof error.errno === 'number' ? errnoName(error.errno) : undefined;
}

/**
 * An error and its causes, outermost first. A cause may point back at itself; five levels are more than we
 * ever nest.
 */
function chainOf(error: unknown): unknown[] {
  const chain: unknown[] = [];
  let current = error;
  while (chain.length < 5 && current !== undefined && current !== null) {
    chain.push(current);
    current = current instanceof Error ? current.cause : undefined;
  }
  return chain;
}

/**
 * The message of an error and of its causes, outermost first, as one line. What was said already is not said
 * again.
 */
export function describeError(error: unknown): string {
  const said: string[] = [];
  for (const one of chainOf(error)) {
    const message = one instanceof Error ? one.message : typeof one === 'string' ? one : 'unknown error';
    const text = nameErrnos(message);
    if (text === '' || said.some((earlier) => earlier.includes(text))) continue;
    said.push(text);
  }
  return said.join(': ');
}
