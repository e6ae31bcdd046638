/* The vector units there are: which of them this processor has, their loops, and what they answer to
 * drawn input, which must be the same bits for all. */

#include <string.h>

#include "loops.h"

/* Changes with every change of an entry point; kernels.py knows which one it needs. */
#define INTERFACE 8

EXPORT int noisyml_interface(void) { return INTERFACE; }

EXPORT int64_t noisyml_panel_bytes(int64_t depth) { return panel_bytes(depth); }

/* The fastest first. */
static const Unit *const UNITS[] = {
#ifdef X86
    &avx512vnni_unit,
    &avx512_unit,
    &avx2_unit,
#endif
#ifdef ARM
    &neondot_unit,
    &neon_unit,
#endif
    &plain_unit,
};

enum { N_UNITS = sizeof UNITS / sizeof *UNITS };

/* Names as kernels.py knows them. */
static const char *const NAMES[LOOPS] = {
    [PRODUCTS_FLOAT] = "products",
    [PRODUCTS_SUMMED] = "products_summed",
    [PRODUCTS_DOUBLE] = "products_double",
    [ROUND] = "round",
    [PACK] = "pack",
    [SCAN_INTEGERS] = "scan_integers",
    [SCAN_TILE] = "scan_tile",
};

/* The name of unit number `unit`, the fastest first; null if there are no more. */
EXPORT const char *noisyml_unit(int unit) {
    return unit >= 0 && unit < N_UNITS ? UNITS[unit]->name : NULL;
}

/* Whether this processor has it. */
EXPORT int noisyml_unit_runs(int unit) { return UNITS[unit]->runs(); }

static Loop loop_of(const Unit *unit, int loop) {
    while (!unit->loops[loop]) unit = unit->base;
    return unit->loops[loop];
}

/* The loop of that name that goes with a unit; null if there is none. */
EXPORT Loop noisyml_loop(int unit, const char *name) {
    for (int loop = 0; loop < LOOPS; loop++)
        if (!strcmp(name, NAMES[loop])) return loop_of(UNITS[unit], loop);
    if (!strcmp(name, "enter")) return noisyml_enter;
    if (!strcmp(name, "count_between")) return noisyml_count_between;
    if (!strcmp(name, "within_caps")) return noisyml_within_caps;
    if (!strcmp(name, "put_in_order")) return noisyml_put_in_order;
    if (!strcmp(name, "rank_samples")) return noisyml_rank_samples;
    return NULL;
}

/* Drawn numbers, the same everywhere. */
static uint32_t next(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* One of 0 ... below - 1. */
static int64_t one_of(uint64_t *state, int64_t below) { return (int64_t)(next(state) % below); }

/* Between -1 and 1. */
static float fraction(uint64_t *state) { return (float)next(state) / 1073741824.0f - 1.0f; }

/* Largest sizes of drawn input. */
enum { ROWS = 40, WIDTH = 101, DEPTH = 4 * CHUNK_DEPTH, PAIRS = ROWS * ROWS };

/* What the loops of a unit make of one input; zeros where there is nothing. */
typedef struct {
    float single[PAIRS];
    double summed[PAIRS], whole[PAIRS];
    int8_t rounded[2][ROWS * DEPTH];
    float lost[2][ROWS];
    int8_t packed[3 * (sizeof(Head) + DEPTH / CHUNK_DEPTH * PANEL * 4 + PANEL * DEPTH)];
    int32_t query[4][PAIRS], place[4][PAIRS];
    float score[4][PAIRS];
    int64_t counts[4];
    int results[LOOPS + 1];
} Answers;

_Static_assert(sizeof(Answers) % sizeof(uint64_t) == 0, "answers are read word by word");

/* One input. */
typedef struct {
    int64_t n[2], width, depth;
    float rows[2][ROWS * WIDTH], step;
    double doubles[2][ROWS * WIDTH];
    int64_t left[PAIRS], right[PAIRS], key[2][ROWS], looks, capacity;
    int32_t bias[2][ROWS], bar[2][ROWS];
    float floor[2][ROWS];
} Questions;

static void ask(Questions *asked, int64_t number, uint64_t *state) {
    memset(asked, 0, sizeof *asked);
    asked->width = 1 + one_of(state, WIDTH);
    asked->depth = (asked->width + CHUNK_DEPTH - 1) / CHUNK_DEPTH * CHUNK_DEPTH;
    /* From rows that stay short to rows of which every coordinate is cut off. */
    static const float steps[] = {0.06f, 0.008f, 0.0002f};
    asked->step = steps[number % 3];
    const int alike = number % 2; /* rows of one sign have large sums */
    const int32_t spread = (int32_t)(asked->depth * (alike ? 1500 : 100));
    for (int side = 0; side < 2; side++) {
        asked->n[side] = 1 + one_of(state, ROWS);
        for (int64_t i = 0; i < asked->n[side] * asked->width; i++) {
            const float x = fraction(state);
            asked->rows[side][i] = alike && x < 0 ? -x : x;
            asked->doubles[side][i] = (double)x + 1e-9 * fraction(state);
        }
        for (int64_t r = 0; r < asked->n[side]; r++) {
            asked->key[side][r] = one_of(state, 20);
            asked->bias[side][r] = (int32_t)one_of(state, 2000) - 1000;
            asked->bar[side][r] = (int32_t)(fraction(state) * (float)spread);
            asked->floor[side][r] = fraction(state);
        }
    }
    for (int64_t i = 0; i < PAIRS; i++) {
        asked->left[i] = one_of(state, asked->n[0]);
        asked->right[i] = one_of(state, asked->n[1]);
    }
    /* Now and then too few. */
    asked->looks = one_of(state, 4) ? PAIRS : one_of(state, PAIRS);
    asked->capacity = one_of(state, 4) ? PAIRS : one_of(state, PAIRS);
}

static Found room(Answers *given, int number, int64_t capacity) {
    return (Found){given->query[number], given->place[number], given->score[number], 0, capacity};
}

static void answer(const Unit *unit, Questions *asked, Answers *given) {
    memset(given, 0, sizeof *given);
    const int64_t width = asked->width, depth = asked->depth, *n = asked->n;
    int *result = given->results;
    Products single = {
        asked->rows[0], asked->rows[1], width, asked->left, asked->right, PAIRS, given->single};
    Products summed = single, whole = single;
    summed.out = given->summed, whole.out = given->whole;
    whole.left = asked->doubles[0], whole.right = asked->doubles[1];
    *result++ = loop_of(unit, PRODUCTS_FLOAT)(&single);
    *result++ = loop_of(unit, PRODUCTS_SUMMED)(&summed);
    *result++ = loop_of(unit, PRODUCTS_DOUBLE)(&whole);
    for (int side = 0; side < 2; side++) {
        Rounding rounding = {
            asked->rows[side], n[side], width, depth, asked->step, given->rounded[side],
            given->lost[side]};
        *result++ = loop_of(unit, ROUND)(&rounding);
    }
    Pack pack = {given->rounded[1], n[1], depth, given->packed};
    *result++ = loop_of(unit, PACK)(&pack);
    Side sides[2];
    for (int side = 0; side < 2; side++)
        sides[side] = (Side){
            side ? given->packed : given->rounded[0], asked->bias[side], asked->bar[side],
            asked->key[side], asked->rows[side], asked->floor[side], NULL, NULL};
    Integers integers = {
        sides[0], sides[1], 3, 5, n[0], n[1], depth, width, asked->looks,
        room(given, 0, asked->capacity), room(given, 1, asked->capacity)};
    *result++ = loop_of(unit, SCAN_INTEGERS)(&integers);
    Tile tile = {
        asked->rows[0], 3, n[0], width < n[1] ? width : n[1], width, asked->floor[0],
        asked->floor[1], room(given, 2, asked->capacity), room(given, 3, asked->capacity)};
    *result++ = loop_of(unit, SCAN_TILE)(&tile);
    given->counts[0] = integers.by_left.count, given->counts[1] = integers.by_right.count;
    given->counts[2] = tile.by_left.count, given->counts[3] = tile.by_right.count;
}

/* 64 bits that tell apart what a unit answers to `rounds` inputs drawn from `seed`; 0 without memory
 * for it. */
EXPORT uint64_t noisyml_unit_answers(int unit, uint64_t seed, int64_t rounds) {
    Questions *asked = malloc(sizeof *asked);
    Answers *given = malloc(sizeof *given);
    uint64_t all = 0;
    for (int64_t i = 0; asked && given && i < rounds; i++) {
        ask(asked, i, &seed);
        answer(UNITS[unit], asked, given);
        for (size_t at = 0; at < sizeof *given; at += sizeof all) {
            uint64_t word;
            memcpy(&word, (char *)given + at, sizeof word);
            all = (all ^ word) * 1099511628211u;
            all ^= all >> 29;
        }
    }
    free(asked);
    free(given);
    return all;
}
