/** Begins the line by which a test file tells build/test.ts which test it skips and why. */
export const SKIP_MARK = '# skipped: ';
