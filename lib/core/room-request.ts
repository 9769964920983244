/**
 * What a step asks the node's room agent for (lib/store/room-agent.ts): one variable in the environment of a
 * process of the step, which does nothing else than to be there. It names an image and never a size: what the
 * image needs, root finds out.
 */

export const roomVariable = 'CONTAINER_CACHE_ROOM';
/** The program of that process: only such processes are looked at. */
export const roomAsker = 'sleep';

/**
 * For an entry; for a container that enroot unpacks; of the user's own quota for either; for the few files of
 * a stub, of disk or quota.
 */
export const roomKinds = ['entry', 'container', 'quota', 'stub', 'stub-quota'] as const;
type RoomKind = (typeof roomKinds)[number];

export interface RoomRequest {
  readonly kind: RoomKind;
  /** An absolute path, or a URI. */
  readonly image: string;
}

export const formatRoomRequest = ({ kind, image }: RoomRequest): string => `${kind} ${image}`;

const longestImage = 4096;

/** @returns undefined for what is no request; the text is a user's */
export function parseRoomRequest(text: string): RoomRequest | undefined {
  const [, word, image] = /^([a-z-]+) (\/.*|[a-z]+:\/\/.*)$/s.exec(text) ?? [];
  const kind = roomKinds.find((one) => one === word);
  return kind === undefined || image === undefined || image.length > longestImage
    ? undefined
    : { kind, image };
}

/**
 * `working` until there is an answer. `over-limit`: the cache would take more than container_cache_max_size.
 */
const roomAnswers = ['working', 'room', 'no-room', 'over-limit'] as const;
export type RoomAnswer = (typeof roomAnswers)[number];

export const parseRoomAnswer = (text: string): RoomAnswer | undefined =>
  roomAnswers.find((answer) => answer === text.trim());
