/** A command line that cannot be meant as it is written: exit code 2, and a pointer to --help. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}
