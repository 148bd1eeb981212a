// Which words of a text differ from another text.

// A word with the space before it stays one piece; Chinese and Japanese write no spaces, so each character is a word.
const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu;

// The table of a comparison has a cell for each pair of words between the first and the last that differ.
const MAX_CELLS = 4_000_000;

/**
 * Compares two texts word by word.
 *
 * Returns `{pieces: [{text, differs}], words, differing}` of the second text, whose pieces joined are that text, or null where
 * the texts are too long to compare.
 */
export function compareWords(base, text) {
  const theirs = base.match(WORDS) ?? [];
  const matches = [...text.matchAll(WORDS)];
  const common = longestCommonWords(theirs, matches.map((match) => match[0]));
  if (common === null) return null;
  const pieces = [];
  let end = 0;
  matches.forEach((match, i) => {
    add(pieces, text.slice(end, match.index), null);
    add(pieces, match[0], !common[i]);
    end = match.index + match[0].length;
  });
  add(pieces, text.slice(end), null);
  return {
    pieces: pieces.map(({ text, differs }) => ({ text, differs: differs === true })),
    words: matches.length,
    differing: common.filter((isCommon) => !isCommon).length,
  };
}

/** Appends a piece. White space takes the mark of the word before it only if the next word has it too. */
function add(pieces, text, differs) {
  if (text === "") return;
  const last = pieces.at(-1);
  const beforeLast = pieces.at(-2);
  if (differs !== null && last?.differs === null && beforeLast?.differs === differs) {
    pieces.length -= 1;
    beforeLast.text += last.text + text;
  } else if (differs !== null && last?.differs === differs) {
    last.text += text;
  } else {
    pieces.push({ text, differs });
  }
}

/** For each word of `b` whether it is part of a longest common subsequence of both, or null if that takes too long. */
function longestCommonWords(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let tail = 0;
  while (tail < Math.min(a.length, b.length) - start && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const rows = a.length - tail - start;
  const columns = b.length - tail - start;
  if ((rows + 1) * (columns + 1) > MAX_CELLS) return null;

  // lengths[i][j]: common words of what follows the i-th word of `a` and the j-th of `b`.
  const width = columns + 1;
  const lengths = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      lengths[i * width + j] =
        a[start + i] === b[start + j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const common = b.map((_, j) => j < start || j >= b.length - tail);
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (a[start + i] === b[start + j]) {
      common[start + j] = true;
      i += 1;
      j += 1;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) {
      i += 1;
    } else {
      j += 1;
    }
  }
  return common;
}
