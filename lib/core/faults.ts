/**
 * Expected failures, sorted by whose problem they are. A job's fault never makes the Prolog exit non-zero, since that
 * would drain a node for one user's mistake or malice: whatever a user can bring about is a job's fault, also what a user can use
 * up for everybody (a disk, processes, memory). Anything else that is thrown is a bug of ours.
 */

/** Why a job cannot be served from the cache, and a user may be the cause; the job runs as it would have without us. */
export type JobFaultCode =
  | 'BAD_JOB'
  | 'IMAGE_UNREADABLE'
  | 'NOT_SQUASHFS'
  | 'BAD_REFERENCE'
  | 'UNSUPPORTED_OPTION'
  | 'IMAGE_CHANGED'
  | 'NOT_CACHED'
  | 'UNPACK_FAILED'
  | 'IMPORT_FAILED'
  | 'CREATE_TIMEOUT'
  | 'LOCK_TIMEOUT'
  | 'ENTRY_DAMAGED'
  | 'QUOTA_EXCEEDED'
  | 'NO_SPACE'
  | 'NO_RESOURCES'
  | 'USER_UNKNOWN';

export class JobFault extends Error {
  override readonly name = 'JobFault';
  readonly code: JobFaultCode;
  constructor(code: JobFaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Why this node cannot serve any job, by what only root can bring about or a disk that fails. Remedies: OPERATIONS.md. */
export type NodeFaultCode =
  | 'BAD_CONFIG'
  | 'BASE_UNSAFE'
  | 'BASE_UNFIT'
  | 'DISK_FAILED'
  | 'USER_DIRECTORY'
  | 'TOOL_MISSING'
  | 'LEASE_FAILED';

export class NodeFault extends Error {
  override readonly name = 'NodeFault';
  readonly code: NodeFaultCode;
  constructor(code: NodeFaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The codes under which a failure is logged and counted; `BUG` is anything we did not expect. */
export type FaultCode = JobFaultCode | NodeFaultCode | 'BUG';

export function faultCode(error: unknown): FaultCode {
  if (error instanceof JobFault) return error.code;
  return usedUpCode(error) ?? (error instanceof NodeFault ? error.code : 'BUG');
}

/** Whether a failure may drain the node. */
export function isFaultOfNode(error: unknown): boolean {
  return !(error instanceof JobFault) && usedUpCode(error) === undefined;
}

/** Error numbers of what is used up, be it by one user: the disk, /run by an import of pyxis, all processes by a fork bomb. */
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

/** Node has no name for a used-up quota: `Unknown system error -122`. */
const quotaErrno = -122;

/** @returns "ENOENT" and the like; undefined for what is no failed system call */
export function systemErrorOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  if ('errno' in error && error.errno === quotaErrno) return 'EDQUOT';
  return 'code' in error && typeof error.code === 'string' && /^E[A-Z0-9]+$/.test(error.code)
    ? error.code
    : undefined;
}

/** An error and its causes, outermost first. A cause may point back at itself; five levels are more than we ever nest. */
function chainOf(error: unknown): unknown[] {
  const chain: unknown[] = [];
  let current = error;
  while (chain.length < 5 && current !== undefined && current !== null) {
    chain.push(current);
    current = current instanceof Error ? current.cause : undefined;
  }
  return chain;
}

/** The message of an error and of its causes, outermost first, as one line. */
export function describeError(error: unknown): string {
  return chainOf(error)
    .map((one) => (one instanceof Error ? one.message : typeof one === 'string' ? one : 'unknown error'))
    .join(': ');
}
