/* Relevant items of queries in the order of their scores. */

#include <string.h>

#include "loops.h"

/* Rows of scores, and where to put those that are relevant, the largest first and equal ones as they
 * stand: see put_in_order() in kernels.py. */
typedef struct {
    const double *scores;    /* [n, width] */
    const uint8_t *relevant; /* [n, width] */
    const int64_t *first;    /* [n]: place in the table of a row's first column, if `places` is null */
    const int64_t *places;   /* [n, width]: of each column */
    const int64_t *table;    /* item at a place */
    double *sorted;          /* [n, room] */
    int64_t *items;          /* [n, room] */
    int64_t n, width, room;
} Order;

/* Up to so many are sorted by insertion alone. */
#define FEW 48
/* Digits by which the others are brought near their place: the first bits of a score. */
#define DIGITS 4
#define DIGIT_BITS 8
#define DIGIT_VALUES (1 << DIGIT_BITS)
#define FIRST_SHIFT (64 - DIGITS * DIGIT_BITS)
/* Steps of an insertion for each of them, before they are merged instead. */
#define PATIENCE 8

/* Whole numbers that ascend where scores descend. */
static inline uint64_t key_of(double score) {
    score += 0.0; /* makes zeros equal */
    int64_t bits;
    memcpy(&bits, &score, sizeof bits);
    return ~((uint64_t)bits ^ ((uint64_t)(bits >> 63) | (uint64_t)1 << 63));
}

/* True if the word `a` comes before `b`. Words hold a column in the bits of `mask`, and before it as
 * much of the key as has room. */
static inline int before(uint64_t a, uint64_t b, uint64_t mask, const double *scores) {
    if ((a ^ b) > mask) return a < b;
    const uint64_t of_a = key_of(scores[a & mask]), of_b = key_of(scores[b & mask]);
    return of_a == of_b ? a < b : of_a < of_b;
}

/* Sort by the first bits. The result lies in `words`; `other` is as large. */
static void near_their_place(uint64_t *words, uint64_t *other, int64_t n) {
    uint32_t start[DIGITS][DIGIT_VALUES];
    uint64_t *from = words, *to = other;
    memset(start, 0, sizeof start);
    for (int64_t i = 0; i < n; i++)
        for (int d = 0; d < DIGITS; d++)
            start[d][words[i] >> (FIRST_SHIFT + d * DIGIT_BITS) & (DIGIT_VALUES - 1)]++;
    for (int d = 0; d < DIGITS; d++) {
        const int shift = FIRST_SHIFT + d * DIGIT_BITS;
        uint32_t *at = start[d], sum = 0;
        if (at[words[0] >> shift & (DIGIT_VALUES - 1)] == n) continue; /* all have it */
        for (int value = 0; value < DIGIT_VALUES; value++) {
            const uint32_t count = at[value];
            at[value] = sum;
            sum += count;
        }
        for (int64_t i = 0; i < n; i++)
            to[at[from[i] >> shift & (DIGIT_VALUES - 1)]++] = from[i];
        uint64_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != words) memcpy(words, from, sizeof *words * (size_t)n);
}

/* False if it would take more than `steps`: the words are then in some other order. */
static int by_insertion(
    uint64_t *words, int64_t n, uint64_t mask, const double *scores, int64_t steps
) {
    for (int64_t i = 1; i < n; i++) {
        const uint64_t word = words[i];
        int64_t at = i;
        for (; at > 0 && before(word, words[at - 1], mask, scores); at--) words[at] = words[at - 1];
        words[at] = word;
        steps -= i - at;
        if (steps < 0) return 0;
    }
    return 1;
}

static void by_merging(
    uint64_t *words, uint64_t *other, int64_t n, uint64_t mask, const double *scores
) {
    for (int64_t length = 1; length < n; length *= 2) {
        for (int64_t start = 0; start < n; start += 2 * length) {
            const int64_t middle = start + length < n ? start + length : n;
            const int64_t end = middle + length < n ? middle + length : n;
            int64_t left = start, right = middle;
            for (int64_t at = start; at < end; at++) {
                const int later =
                    left == middle ||
                    (right < end && before(words[right], words[left], mask, scores));
                other[at] = words[later ? right++ : left++];
            }
        }
        memcpy(words, other, sizeof *words * (size_t)n);
    }
}

int noisyml_put_in_order(void *given) {
    const Order *job = given;
    const int64_t width = job->width;
    uint64_t *words = malloc(sizeof *words * 2 * (size_t)(width ? width : 1));
    if (!words) return NO_MEMORY;
    uint64_t *other = words + width, mask = 0;
    while (mask + 1 < (uint64_t)width) mask = 2 * mask + 1;
    for (int64_t row = 0; row < job->n; row++) {
        const double *scores = job->scores + row * width;
        const uint8_t *relevant = job->relevant + row * width;
        int64_t n = 0;
        for (int64_t column = 0; column < width; column++) {
            words[n] = (key_of(scores[column]) & ~mask) | (uint64_t)column;
            n += relevant[column] != 0;
        }
        if (n <= FEW) {
            by_insertion(words, n, mask, scores, INT64_MAX);
        } else {
            near_their_place(words, other, n);
            if (!by_insertion(words, n, mask, scores, PATIENCE * n))
                by_merging(words, other, n, mask, scores);
        }
        double *sorted = job->sorted + row * job->room;
        int64_t *items = job->items + row * job->room;
        for (int64_t i = 0; i < n && i < job->room; i++) {
            const int64_t column = (int64_t)(words[i] & mask);
            sorted[i] = scores[column];
            items[i] = job->table[job->places ? job->places[row * width + column]
                                              : job->first[row] + column];
        }
    }
    free(words);
    return DONE;
}
