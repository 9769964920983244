/**
 * What the demo prints: headings, commands, facts, checks. Colour only on a terminal that wants it
 * (NO_COLOR).
 */
import process from 'node:process';
import { styleText } from 'node:util';

type Style = Parameters<typeof styleText>[0];

const style = (format: Style, text: string): string => styleText(format, text, { stream: process.stdout });

function print(line = ''): void {
  process.stdout.write(`${line}\n`);
}

const indent = '   ';

let stepCount = 0;

/** A numbered step. */
export function heading(text: string): void {
  stepCount++;
  print();
  print(style('bold', `${stepCount}. ${text}`));
}

export function title(text: string): void {
  print(style(['bold', 'underline'], text));
}

export function say(text: string): void {
  print(`${indent}${text}`);
}

/** What was run, and by whom. */
export function command(prompt: string, text: string): void {
  print(`${indent}${style('cyan', `${prompt} ${text}`)}`);
}

/** Names and what is there; a further value of the same name has an empty name. */
export function facts(pairs: readonly (readonly [string, string])[]): void {
  const width = Math.max(...pairs.map(([name]) => name.length));
  for (const [name, value] of pairs) print(`${indent}  ${name.padEnd(width)}  ${value}`);
}

/** Lines of a program, as they are. */
export function lines(text: readonly string[]): void {
  for (const line of text) print(`${indent}  ${style('dim', line)}`);
}

export function table(rows: readonly string[]): void {
  for (const row of rows) print(`${indent}${row}`);
}

/** A thing that could not be shown here. */
export function skipped(what: string, reason: string): void {
  print(`${indent}${style('yellow', 'skipped')} ${what}: ${reason}`);
}

let failureCount = 0;

/** States a fact that must hold; one that does not makes the demo fail. */
export function check(fact: string, isTrue: boolean, found?: string): void {
  if (isTrue) {
    print(`${indent}${style('green', 'ok')}  ${fact}`);
    return;
  }
  failureCount++;
  print(`${indent}${style('red', 'FAILED')}  ${fact}${found === undefined ? '' : `; found ${found}`}`);
}

export const failedChecks = (): number => failureCount;
