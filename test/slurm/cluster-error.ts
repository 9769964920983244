/** A test cluster could not be started, or did not reach a state in time. */
export class ClusterError extends Error {
  override readonly name = 'ClusterError';
}
