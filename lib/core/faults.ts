/**
 * Expected failures, sorted by whose problem they are. A job's fault never makes the Prolog exit non-zero, since that
 * would drain a node for one user's mistake or malice: whatever a user can bring about is a job's fault. Anything else
 * that is thrown is a bug of ours.
 */

/** What a job did that cannot be served from the cache; the job runs as it would have without us. */
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
  | 'QUOTA_EXCEEDED';

export class JobFault extends Error {
  override readonly name = 'JobFault';
  readonly code: JobFaultCode;
  constructor(code: JobFaultCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Why this node cannot serve any job, or not this one now. Remedies: OPERATIONS.md. */
export type NodeFaultCode =
  'BAD_CONFIG' | 'BASE_UNSAFE' | 'USER_DIRECTORY' | 'NO_SPACE' | 'TOOL_MISSING' | 'LEASE_FAILED';

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
  return error instanceof JobFault || error instanceof NodeFault ? error.code : 'BUG';
}

/** The message of an error and of its causes, outermost first, as one line. */
export function describeError(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  // A cause may point back at itself; five levels are more than we ever nest.
  for (let depth = 0; depth < 5 && current !== undefined && current !== null; depth++) {
    parts.push(
      current instanceof Error ? current.message : typeof current === 'string' ? current : 'unknown error',
    );
    current = current instanceof Error ? current.cause : undefined;
  }
  return parts.join(': ');
}
