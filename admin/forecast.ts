/** What a collection would do now, by what entries claim of their sizes. */
import {
  countUntil,
  isCollectionDue,
  isGoalReached,
  isStale,
  planCollection,
  wantsEmptyCache,
  type CollectionPlan,
  type CollectionPolicy,
  type Usage,
} from '../lib/core/gc-plan.ts';
import { listEntries, type FoundEntry, type ListRequest } from '../lib/store/listed-entries.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { MountScan } from '../lib/system/mounts.ts';

interface ForecastRequest extends ListRequest {
  readonly policy: CollectionPolicy;
  /** Collect even below the high watermark, down to the low one. */
  readonly force?: boolean;
}

export interface Forecast {
  readonly usage: Usage;
  readonly due: boolean;
  /** Other files fill the disk: by what entries claim, the goal cannot be reached, and so nothing goes. */
  readonly isInVain: boolean;
  readonly plan: CollectionPlan<FoundEntry>;
}

/** Changes nothing. */
export function forecastCollection(request: ForecastRequest): Forecast {
  const { base, policy, force } = request;
  const usage = readUsage(base.path);
  const entries = listEntries(request, new MountScan(base.path));
  const due = force === true ? !isGoalReached(usage, policy) : isCollectionDue(usage, policy);
  const plan = planCollection(entries, usage, policy, Date.now());
  const isInVain =
    force !== true &&
    !wantsEmptyCache(policy) &&
    countUntil(usage, plan.evict, (forecast) => isGoalReached(forecast, policy)) === undefined;
  if (!due || !isInVain) return { usage, due, isInVain: false, plan };
  const stale = plan.evict.filter((entry) => isStale(entry, Date.now()));
  const reserve = plan.evict.filter((entry) => !stale.includes(entry));
  return { usage, due, isInVain, plan: { ...plan, evict: stale, reserve: [...reserve, ...plan.reserve] } };
}
