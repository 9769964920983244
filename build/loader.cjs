/**
 * The executable's main program: runs the bundle, an asset, by its code cache.
 *
 * What the runtime's own code cache for main programs lacks are the functions: each would be compiled at its
 * first call, which took a warm Prolog as long as all its own work. build.ts makes one with all of them.
 */
const { getRawAsset } = require('node:sea');
const { Script } = require('node:vm');

const asset = (name) => Buffer.from(getRawAsset(name));
const script = new Script(asset('main.cjs').latin1Slice(), {
  filename: 'main.cjs',
  cachedData: asset('main.cache'),
});
script.runInThisContext()(require, module, exports);
