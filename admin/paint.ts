/** Colours of what is printed. */
import process from 'node:process';
import { styleText } from 'node:util';

/** Colour for a terminal, unless NO_COLOR forbids it. */
export function paint(colour: 'red' | 'yellow' | 'green' | 'dim', text: string): string {
  return styleText(colour, text, { stream: process.stdout });
}
