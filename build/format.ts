/** `npm run format`: lays out every source, shell scripts included. */
import { spawnSync } from 'node:child_process';
import { formatCommands, isInstalled } from './ok.ts';

for (const { file, parameters } of formatCommands('write')) {
  if (!isInstalled(file)) {
    console.error(`format: ${file} is not installed: its files stay as they are`);
    continue;
  }
  const { status } = spawnSync(file, parameters, { stdio: ['ignore', 'ignore', 'inherit'] });
  if (status !== 0) process.exitCode = 1;
}
