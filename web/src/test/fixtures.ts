// Fixtures of the repository, as JSON whose long numbers keep their digits.

import { readFileSync } from "node:fs";

/** JSON of a file beside the repository's tests; numbers past 2^53 come as text. */
export function fixture<T>(path: string): T {
  const text = readFileSync(new URL(`../../../${path}`, import.meta.url), "utf8");
  return JSON.parse(text.replace(/":(\d{16,})(?=[,}])/g, '":"$1"')) as T;
}
