/**
 * The picture of README.md: how long a container takes to start, as bars, from what the benchmark measured.
 *
 * An SVG of its own: no font, script or image from elsewhere. It has no background, and its colours follow
 * the reader's light or dark scheme.
 */
import { startFigures } from './container-starts.ts';
import type { Figure, Report } from './report.ts';

interface Bar {
  readonly label: string;
  readonly note: string;
  readonly milliseconds: number;
  readonly isOurs: boolean;
}

const width = 760;
const barLeft = 24;
const barRight = 660;
const top = 74;
const rowHeight = 58;
const barHeight = 18;

const style = `
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 }
  .note { fill: #59636e; font-size: 12px }
  .value { font-weight: 600 }
  .bar { fill: #8c959f }
  .ours { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .note { fill: #9198a1 }
    .bar { fill: #656c76 }
    .ours { fill: #3fb950 }
  }`;

/**
 * Draws the container starts of a report.
 *
 * @returns an SVG document
 * @throws {Error} if the report has no container starts
 */
export function drawStartTimes({ findings, facts }: Pick<Report, 'findings' | 'facts'>): string {
  const figures = findings.flatMap(({ a, b }) => (b === undefined ? [a] : [a, b]));
  const bar = (what: string, label: string, note: string, isOurs = false): Bar => ({
    label,
    note,
    milliseconds: medianOf(figures, what),
    isOurs,
  });
  const bars = [
    bar(startFigures.cold, 'pyxis and enroot alone', 'each job unpacks the image'),
    bar(startFigures.warm, 'with container-cache', 'the image is on the node', true),
    bar(startFigures.named, 'enroot alone, nothing to unpack', 'a container that a user keeps by its name'),
    bar(startFigures.empty, 'srun without a container', 'Slurm alone'),
  ];
  const longest = Math.max(...bars.map(({ milliseconds }) => milliseconds));
  const height = top + bars.length * rowHeight + 28;
  const title = 'Time of srun --container-image=IMAGE true';
  const summary = bars.map(({ label, milliseconds }) => `${label}: ${seconds(milliseconds)}`).join('; ');
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-labelledby="title summary">
<title id="title">${escapeXml(title)}</title>
<desc id="summary">${escapeXml(summary)}</desc>
<style>${style}
</style>
<text class="title" x="${barLeft}" y="28">${escapeXml(title)}</text>
<text class="note" x="${barLeft}" y="48">${escapeXml(facts.containers ?? '')}</text>
${bars.map((one, index) => drawBar(one, top + index * rowHeight, longest)).join('\n')}
<text class="note" x="${barLeft}" y="${height - 12}">${escapeXml(`Medians on ${facts.cores} processors, Linux ${facts.kernel}; npm run bench`)}</text>
</svg>
`;
}

function drawBar({ label, note, milliseconds, isOurs }: Bar, y: number, longest: number): string {
  const length = Math.max(2, Math.round(((barRight - barLeft) * milliseconds) / longest));
  const baseline = y + 14;
  return [
    `<text x="${barLeft}" y="${baseline}">${escapeXml(label)}<tspan class="note" dx="8">${escapeXml(note)}</tspan></text>`,
    `<rect class="${isOurs ? 'ours' : 'bar'}" x="${barLeft}" y="${y + 22}" width="${length}" height="${barHeight}" rx="3"/>`,
    `<text class="value" x="${barLeft + length + 8}" y="${y + 36}">${escapeXml(seconds(milliseconds))}</text>`,
  ].join('\n');
}

function medianOf(figures: readonly Figure[], what: string): number {
  const figure = figures.find((one) => one.what === what);
  if (figure === undefined) throw new Error(`Cannot draw the picture: "${what}" was not measured`);
  return figure.value.median;
}

const seconds = (milliseconds: number): string =>
  `${(milliseconds / 1000).toFixed(milliseconds < 1000 ? 2 : 1)} s`;

const escapeXml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
