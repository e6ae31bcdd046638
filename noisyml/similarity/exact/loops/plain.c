/* The loops in plain C: what every processor runs, and what the vector units are compared with. */

#include <math.h>
#include <string.h>

#include "loops.h"

/* Partial sums of 32 coordinates in turn, as four registers of eight hold them. */
#define LANES 32

float plain_product(const float *a, const float *b, int64_t width) {
    float s[LANES] = {0};
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES)
        for (int l = 0; l < LANES; l++) s[l] += a[d + l] * b[d + l];
    for (; d + 8 <= width; d += 8)
        for (int l = 0; l < 8; l++) s[l] += a[d + l] * b[d + l];
    for (int l = 0; l < 8; l++) s[l] = (s[l] + s[l + 8]) + (s[l + 16] + s[l + 24]);
    for (int l = 0; l < 4; l++) s[l] += s[l + 4];
    float sum = (s[0] + s[2]) + (s[1] + s[3]);
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

static double product_summed(const float *a, const float *b, int64_t width) {
    double s[8] = {0};
    int64_t d = 0;
    for (; d + 8 <= width; d += 8)
        for (int l = 0; l < 8; l++) s[l] += (double)a[d + l] * b[d + l];
    for (int l = 0; l < 4; l++) s[l] += s[l + 4];
    double sum = (s[0] + s[1]) + (s[2] + s[3]);
    for (; d < width; d++) sum += (double)a[d] * b[d];
    return sum;
}

static double product_double(const double *a, const double *b, int64_t width) {
    double s[16] = {0};
    int64_t d = 0;
    for (; d + 16 <= width; d += 16)
        for (int l = 0; l < 16; l++) s[l] += a[d + l] * b[d + l];
    for (int l = 0; l < 4; l++) s[l] = (s[l] + s[l + 4]) + (s[l + 8] + s[l + 12]);
    double sum = (s[0] + s[1]) + (s[2] + s[3]);
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

PRODUCTS(static, plain_products, plain_product, float, float)
PRODUCTS(static, plain_products_summed, product_summed, float, double)
PRODUCTS(static, plain_products_double, product_double, double, double)

/* Adding and subtracting it rounds a smaller float to the nearest whole number, ties to even. */
#define ROUNDER 12582912.0f

static int plain_round(void *given) {
    const Rounding *job = given;
    const int64_t width = job->width, depth = job->depth;
    const float *rows = job->rows;
    int8_t *out = job->out;
    const float step = job->step, inverse = 1.0f / step;
    for (int64_t r = 0; r < job->n; r++, rows += width, out += depth) {
        float squares[8] = {0};
        for (int64_t d = 0; d < depth; d += 8) {
            float x[8] = {0};
            int32_t z[8];
            if (d < width)
                memcpy(x, rows + d, sizeof(float) * (size_t)(width - d < 8 ? width - d : 8));
            for (int l = 0; l < 8; l++) {
                float y = x[l] * inverse;
                y = y < LIMIT ? y : LIMIT;
                y = y > -LIMIT ? y : -LIMIT;
                z[l] = (int32_t)((y + ROUNDER) - ROUNDER);
            }
            for (int l = 0; l < 8; l += 2) shorten(z + l);
            for (int l = 0; l < 8; l++) {
                const float left = x[l] - (float)z[l] * step;
                squares[l] += left * left;
                out[d + l] = (int8_t)z[l];
            }
        }
        for (int l = 0; l < 4; l++) squares[l] += squares[l + 4];
        job->lost[r] = sqrtf((squares[0] + squares[2]) + (squares[1] + squares[3]));
    }
    return DONE;
}

int32_t plain_longest_stretch(const int8_t *row, int64_t depth, int32_t *sums) {
    int32_t longest = 0;
    for (int64_t d = 0; d < depth; d += CHUNK_DEPTH) {
        for (int64_t half = d; half < d + QUAD; half += 2) {
            int32_t square = 0, sum = 0;
            for (int64_t c = half; c < d + CHUNK_DEPTH; c += QUAD) {
                const int32_t a = row[c], b = row[c + 1];
                square += a * a + b * b;
                sum += a + b;
            }
            if (square > longest) longest = square;
            if (sums) *sums++ = sum;
        }
    }
    return longest;
}

int pack_rows(const Pack *job, Stretch longest_stretch) {
    const int64_t n = job->n, depth = job->depth;
    const int64_t chunks = depth / CHUNK_DEPTH, bytes = panel_bytes(depth);
    int8_t *packed = job->packed;
    int32_t *sums = malloc(sizeof(int32_t) * 2 * (size_t)chunks);
    if (!sums) return NO_MEMORY;
    for (int64_t first = 0; first < n; first += PANEL, packed += bytes) {
        Head head;
        memset(&head, 0, sizeof head);
        memset(packed, 0, (size_t)bytes);
        int16_t *shifts = (int16_t *)(packed + sizeof head);
        int8_t *quads = packed + bytes - PANEL * depth;
        for (int64_t r = 0; r < PANEL && first + r < n; r++) {
            const int8_t *row = job->rows + (first + r) * depth;
            const int32_t longest = longest_stretch(row, depth, sums);
            if (longest > head.largest) head.largest = longest;
            for (int64_t c = 0; c < 2 * chunks; c++) {
                head.shift[r] -= ZERO * sums[c];
                /* Of 16 bits the lowest: they wrap around. */
                shifts[c / 2 * 2 * PANEL + 2 * r + c % 2] =
                    (int16_t)(uint16_t)(-(uint32_t)ZERO * (uint32_t)sums[c]);
            }
            for (int64_t d = 0; d < depth; d += QUAD)
                memcpy(quads + d * PANEL + QUAD * r, row + d, QUAD);
        }
        memcpy(packed, &head, sizeof head);
    }
    free(sums);
    return DONE;
}

static int plain_pack(void *given) { return pack_rows(given, plain_longest_stretch); }

/* Inner products of a row with four that lie one after the other: compilers find the vector
 * instruction for each. */
static inline void four_products(
    const int16_t *restrict a, const int16_t *restrict b, int64_t depth, int32_t sums[4]
) {
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int64_t d = 0; d < depth; d++) {
        s0 += a[d] * b[d];
        s1 += a[d] * b[depth + d];
        s2 += a[d] * b[2 * depth + d];
        s3 += a[d] * b[3 * depth + d];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

#define UNIT
#define BAND 1
#define OF(name) plain_##name
#define PRODUCT plain_product
#define STRETCH plain_longest_stretch
#define WIDE
#include "scan.h"

static inline int plain_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    (void)small;
    int16_t *row = panel->wide + PANEL * depth;
    for (int64_t d = 0; d < depth; d++) row[d] = (int16_t)(band[d] - ZERO);
    int32_t sums[PANEL];
    for (int c = 0; c < PANEL; c += 4) four_products(row, panel->wide + c * depth, depth, sums + c);
    uint32_t mask = 0;
    for (int c = 0; c < PANEL; c++) {
        const int32_t score = sums[c] + panel->bias[c] + *bias;
        mask |= (uint32_t)(score > *bar || score > panel->bar[c]) << c;
    }
    *masks = mask;
    return mask != 0;
}

/* Entries that are looked at together. */
#define TOGETHER 64

static int plain_scan_tile(void *given) {
    Tile *job = given;
    const int64_t n_right = job->n_right;
    const float *right_floor = job->right_floor;
    for (int64_t i = 0; i < job->n_left; i++) {
        const float *row = job->tile + i * job->stride;
        const float floor = job->left_floor[i];
        for (int64_t j = 0; j < n_right; j += TOGETHER) {
            const int64_t end = j + TOGETHER < n_right ? j + TOGETHER : n_right;
            if (end == j + TOGETHER) {
                int32_t any = 0;
                for (int64_t c = j; c < j + TOGETHER; c++)
                    any |= (row[c] >= floor) | (row[c] >= right_floor[c]);
                if (!any) continue;
            }
            for (int64_t c = j; c < end; c++) {
                if (row[c] >= floor && push(&job->by_left, job->first + i, c, row[c])) return FULL;
                if (row[c] >= right_floor[c] && push(&job->by_right, c, job->first + i, row[c]))
                    return FULL;
            }
        }
    }
    return DONE;
}

static int plain_runs(void) { return 1; }

const Unit plain_unit = {
    .name = "plain",
    .runs = plain_runs,
    .loops = {
        [PRODUCTS_FLOAT] = plain_products,
        [PRODUCTS_SUMMED] = plain_products_summed,
        [PRODUCTS_DOUBLE] = plain_products_double,
        [ROUND] = plain_round,
        [PACK] = plain_pack,
        [SCAN_INTEGERS] = plain_scan_integers,
        [SCAN_TILE] = plain_scan_tile,
    },
};
