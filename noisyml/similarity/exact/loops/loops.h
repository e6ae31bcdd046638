/* Jobs, constants and entry points of the compiled loops: see noisyml/similarity/exact/kernels.py.
 *
 * C11 without Python's headers. Every loop takes one job, a struct, and touches only what stands in
 * it; noisyml_in_threads() runs it on several jobs at once. Loops that profit from a vector unit
 * exist once in plain C and once for each unit, see units.c: all give the same bits. So whoever adds
 * floats up does it in the lanes and the order of plain.c, multiplies before he adds, and is compiled
 * with -ffp-contract=off. Integer sums are exact in any order.
 */

#ifndef NOISYML_LOOPS_H
#define NOISYML_LOOPS_H

#include <float.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Floats are not kept with more bits on the way. */
_Static_assert(FLT_EVAL_METHOD == 0, "the loops would not give the bits of other processors");

/* Right rows that are multiplied together. */
#define PANEL 16
/* Coordinates of a row in one 32-bit lane; its halves sum two each. */
#define QUAD 4
/* Quads whose products are summed in 16 bits before they go to 32. */
#define CHUNK 8
#define CHUNK_DEPTH (QUAD * CHUNK)
/* Left rows are moved above zero, because x86's instructions take one side unsigned. */
#define ZERO 128
/* Sizes of two neighbours add up to at most this. */
#define LIMIT 127
/* What 16 bits hold. */
#define LARGEST 32767

enum { DONE = 0, FULL = 1, NO_MEMORY = 2 };

typedef int (*Loop)(void *job);

/* out[i] = left[rows[i]] . right[columns[i]]; `left`, `right` and `out` of a type that the loop
 * knows. */
typedef struct {
    const void *left, *right;
    int64_t width;
    const int64_t *rows, *columns;
    int64_t n;
    void *out;
} Products;

/* The loop of a unit for it, given the function for one pair. */
#define PRODUCTS(attributes, name, of, Number, Sum)                                                \
    attributes int name(void *given) {                                                             \
        const Products *job = given;                                                               \
        const Number *left = job->left, *right = job->right;                                       \
        Sum *out = job->out;                                                                       \
        const int64_t width = job->width;                                                          \
        for (int64_t i = 0; i < job->n; i++)                                                       \
            out[i] = of(left + job->rows[i] * width, right + job->columns[i] * width, width);      \
        return DONE;                                                                               \
    }

/* Float rows in whole multiples of `step`, two neighbours within LIMIT, with zeros up to `depth`;
 * and the norms of what is lost. */
typedef struct {
    const float *rows;
    int64_t n, width, depth;
    float step;
    int8_t *out;
    float *lost;
} Rounding;

/* Two numbers moved towards zero until their sizes add up to LIMIT at most. */
static inline void shorten(int32_t *two) {
    const int32_t a = abs(two[0]), b = abs(two[1]), over = a + b - LIMIT;
    if (over <= 0) return;
    const int32_t less = a < b ? a : b, from_less = over / 2 < less ? over / 2 : less;
    const int32_t from_a = a < b ? from_less : over - from_less;
    two[0] = two[0] < 0 ? from_a - a : a - from_a;
    two[1] = two[1] < 0 ? over - from_a - b : b - (over - from_a);
}

/* Right rows in the order in which they are multiplied, PANEL of them: this, then for each chunk
 * PANEL pairs of 16-bit shifts, then the quads of all rows in turn. */
typedef struct {
    int32_t largest;         /* square of the longest stretch of a row that is summed in 16 bits */
    int32_t unused[7];
    int32_t shift[PANEL];    /* of sums in 32 bits: -ZERO times the sum of the row */
} Head;

static inline int64_t shifts_bytes(int64_t depth) {
    return depth / CHUNK_DEPTH * PANEL * 2 * (int64_t)sizeof(int16_t);
}

static inline int64_t panel_bytes(int64_t depth) {
    return (int64_t)sizeof(Head) + shifts_bytes(depth) + PANEL * depth;
}

/* Rows to be packed, whole panels of them; rows that are not there are zero. */
typedef struct {
    const int8_t *rows;
    int64_t n, depth;
    int8_t *packed;
} Pack;

/* Pairs found so far, and room for `capacity` of them. */
typedef struct {
    int32_t *query;
    int32_t *place;
    float *score;
    int64_t count;
    int64_t capacity;
} Found;

static inline int push(Found *found, int64_t query, int64_t place, float score) {
    if (found->count == found->capacity) return FULL;
    found->query[found->count] = (int32_t)query;
    found->place[found->count] = (int32_t)place;
    found->score[found->count] = score;
    found->count++;
    return DONE;
}

/* One side of a tile of integer rows: see IntegerSide in kernels.py. */
typedef struct {
    const int8_t *rows;
    const int32_t *bias, *bar;
    const int64_t *key;
    const float *exact;
    const float *floor;
    const int64_t *at;
    const float *factor;
} Side;

/* The float row number `i` of a side. */
static inline const float *exact_row(const Side *side, int64_t i, int64_t width) {
    return side->exact + (side->at ? side->at[i] : i) * width;
}

/* Pairs of left rows and right rows, numbered from `first` and `first_right` on, whose integer score
 * exceeds the bar of either, with their float scores, if these reach the floor. Keys that are equal
 * mark pairs that do not count. FULL if more than `most_looks` pairs pass the bars. */
typedef struct {
    Side left, right;
    int64_t first, first_right, n_left, n_right, depth, width, most_looks;
    Found by_left, by_right;
} Integers;

/* Entries of a float tile, whose rows are numbered from `first` on, that reach the floor of their
 * row or of their column. */
typedef struct {
    const float *tile;
    int64_t first, n_left, n_right, stride;
    const float *left_floor, *right_floor;
    Found by_left, by_right;
} Tile;

/* Right rows of a panel as scan.h hands them to a unit, and what they ask of an integer score. */
typedef struct {
    const Head *head;
    const int16_t *shifts;
    const int8_t *quads;
    int32_t bias[PANEL], bar[PANEL];
    int16_t *wide; /* [PANEL + 1, depth] where the unit is WIDE, the last row for its own use */
} Panel;

/* Loops that a unit may have in a form of its own. */
enum {
    PRODUCTS_FLOAT,  /* of float32 rows */
    PRODUCTS_SUMMED, /* of float32 rows, summed in 64 bits */
    PRODUCTS_DOUBLE,
    ROUND,
    PACK,
    SCAN_INTEGERS,
    SCAN_TILE,
    LOOPS
};

/* A vector unit: its name, whether this processor has it, the unit whose loops it takes where it has
 * none of its own, and its loops. */
typedef struct Unit {
    const char *name;
    int (*runs)(void);
    const struct Unit *base;
    Loop loops[LOOPS];
} Unit;

/* longest_stretch() of a unit: the square of the longest stretch of a row that is summed in 16 bits;
 * `sums`, if not null, gets the sums of all stretches, two a chunk. */
typedef int32_t (*Stretch)(const int8_t *row, int64_t depth, int32_t *sums);

extern const Unit plain_unit;
/* The loop `pack`, given a unit's form of what takes time in it. */
int pack_rows(const Pack *job, Stretch longest_stretch);

/* Parts that other units take, too. */
float plain_product(const float *a, const float *b, int64_t width);
int32_t plain_longest_stretch(const int8_t *row, int64_t depth, int32_t *sums);

#if defined(__x86_64__) && (__GNUC__ >= 9 || __clang_major__ >= 8)
#define X86
extern const Unit avx2_unit, avx512_unit, avx512vnni_unit;
float avx2_product(const float *a, const float *b, int64_t width);
int32_t avx2_longest_stretch(const int8_t *row, int64_t depth, int32_t *sums);
#elif defined(__aarch64__) && defined(__ARM_NEON) && (__GNUC__ >= 9 || __clang_major__ >= 8)
#define ARM
extern const Unit neon_unit, neondot_unit;
#endif

/* Loops that are the same for all units: lists.c, order.c, classes.c. */
int noisyml_enter(void *job), noisyml_count_between(void *job), noisyml_within_caps(void *job);
int noisyml_put_in_order(void *job), noisyml_rank_samples(void *job);

#endif
