/* The loops for x86-64 with AVX2. */

#include "loops.h"

#ifdef X86

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define UNIT __attribute__((target("avx2")))

static int avx2_runs(void) { return __builtin_cpu_supports("avx2"); }

/* Two roundings: one would be other bits than those of processors that cannot do with one. */
UNIT static inline __m256 plus(__m256 a, __m256 b, __m256 sum) {
    return _mm256_add_ps(sum, _mm256_mul_ps(a, b));
}

UNIT static inline __m256d plus_double(__m256d a, __m256d b, __m256d sum) {
    return _mm256_add_pd(sum, _mm256_mul_pd(a, b));
}

UNIT static inline float sum8(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

UNIT float avx2_product(const float *a, const float *b, int64_t width) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    int64_t d = 0;
    for (; d + 32 <= width; d += 32) {
        s0 = plus(_mm256_loadu_ps(a + d), _mm256_loadu_ps(b + d), s0);
        s1 = plus(_mm256_loadu_ps(a + d + 8), _mm256_loadu_ps(b + d + 8), s1);
        s2 = plus(_mm256_loadu_ps(a + d + 16), _mm256_loadu_ps(b + d + 16), s2);
        s3 = plus(_mm256_loadu_ps(a + d + 24), _mm256_loadu_ps(b + d + 24), s3);
    }
    for (; d + 8 <= width; d += 8)
        s0 = plus(_mm256_loadu_ps(a + d), _mm256_loadu_ps(b + d), s0);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

UNIT static double product_summed(const float *a, const float *b, int64_t width) {
    __m256d s0 = _mm256_setzero_pd(), s1 = s0;
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        s0 = plus_double(
            _mm256_cvtps_pd(_mm_loadu_ps(a + d)), _mm256_cvtps_pd(_mm_loadu_ps(b + d)), s0);
        s1 = plus_double(
            _mm256_cvtps_pd(_mm_loadu_ps(a + d + 4)), _mm256_cvtps_pd(_mm_loadu_ps(b + d + 4)), s1);
    }
    double part[4];
    _mm256_storeu_pd(part, _mm256_add_pd(s0, s1));
    double sum = (part[0] + part[1]) + (part[2] + part[3]);
    for (; d < width; d++) sum += (double)a[d] * b[d];
    return sum;
}

UNIT static double product_double(const double *a, const double *b, int64_t width) {
    __m256d s0 = _mm256_setzero_pd(), s1 = s0, s2 = s0, s3 = s0;
    int64_t d = 0;
    for (; d + 16 <= width; d += 16) {
        s0 = plus_double(_mm256_loadu_pd(a + d), _mm256_loadu_pd(b + d), s0);
        s1 = plus_double(_mm256_loadu_pd(a + d + 4), _mm256_loadu_pd(b + d + 4), s1);
        s2 = plus_double(_mm256_loadu_pd(a + d + 8), _mm256_loadu_pd(b + d + 8), s2);
        s3 = plus_double(_mm256_loadu_pd(a + d + 12), _mm256_loadu_pd(b + d + 12), s3);
    }
    double part[4];
    _mm256_storeu_pd(part, _mm256_add_pd(_mm256_add_pd(s0, s1), _mm256_add_pd(s2, s3)));
    double sum = (part[0] + part[1]) + (part[2] + part[3]);
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

PRODUCTS(UNIT static, avx2_products, avx2_product, float, float)
PRODUCTS(UNIT static, avx2_products_summed, product_summed, float, double)
PRODUCTS(UNIT static, avx2_products_double, product_double, double, double)

UNIT static int avx2_round(void *given) {
    const Rounding *job = given;
    const int64_t width = job->width, depth = job->depth;
    const float *rows = job->rows;
    int8_t *out = job->out;
    const __m256 inverse = _mm256_set1_ps(1.0f / job->step), back = _mm256_set1_ps(job->step);
    const __m256i limit = _mm256_set1_epi32(LIMIT);
    for (int64_t r = 0; r < job->n; r++, rows += width, out += depth) {
        __m256 squares = _mm256_setzero_ps();
        for (int64_t d = 0; d < depth; d += 8) {
            __m256 x;
            if (d + 8 <= width) {
                x = _mm256_loadu_ps(rows + d);
            } else {
                float some[8] = {0};
                if (d < width) memcpy(some, rows + d, sizeof(float) * (size_t)(width - d));
                x = _mm256_loadu_ps(some);
            }
            __m256i z = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(
                _mm256_mul_ps(x, inverse), _mm256_set1_ps(LIMIT)), _mm256_set1_ps(-LIMIT)));
            const __m256i size = _mm256_abs_epi32(z);
            const __m256i two = _mm256_add_epi32(size, _mm256_shuffle_epi32(size, 0xb1));
            int32_t numbers[8];
            _mm256_storeu_si256((__m256i *)numbers, z);
            if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(two, limit))) {
                for (int i = 0; i < 8; i += 2) shorten(numbers + i);
                z = _mm256_loadu_si256((const __m256i *)numbers);
            }
            for (int i = 0; i < 8; i++) out[d + i] = (int8_t)numbers[i];
            const __m256 left = _mm256_sub_ps(x, _mm256_mul_ps(_mm256_cvtepi32_ps(z), back));
            squares = plus(left, left, squares);
        }
        job->lost[r] = sqrtf(sum8(squares));
    }
    return DONE;
}

/* Of eight numbers the sums of the even and of the odd ones, in the first two places. */
UNIT static inline __m128i even_and_odd(__m256i x) {
    const __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_add_epi32(y, _mm_unpackhi_epi64(y, y));
}

UNIT int32_t avx2_longest_stretch(const int8_t *row, int64_t depth, int32_t *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m128i longest = _mm_setzero_si128();
    for (int64_t d = 0; d < depth; d += CHUNK_DEPTH) {
        const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + d)));
        const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + d + 16)));
        longest = _mm_max_epi32(longest, even_and_odd(
            _mm256_add_epi32(_mm256_madd_epi16(a, a), _mm256_madd_epi16(b, b))));
        if (sums) {
            _mm_storel_epi64((__m128i *)sums, even_and_odd(
                _mm256_add_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones))));
            sums += 2;
        }
    }
    const int32_t even = _mm_extract_epi32(longest, 0), odd = _mm_extract_epi32(longest, 1);
    return even > odd ? even : odd;
}

static int avx2_pack(void *given) { return pack_rows(given, avx2_longest_stretch); }

#define BAND 4
#define OF(name) avx2_##name
#define PRODUCT avx2_product
#define STRETCH avx2_longest_stretch
#include "scan.h"

/* A register that the compiler must not reorder the sums of: it would keep more of them at once than
 * there are registers. */
#define IN_ORDER(x) __asm__("" : "+x"(x))

/* Sums of a band of left rows and a panel of right rows.
 *
 * 16-bit sums wrap around, which does no harm as long as what they end at fits: `shifts` takes back
 * what the left rows lie above zero, and by Cauchy and Schwarz the rest is at most the product of
 * the lengths of both stretches, which the caller has compared with LARGEST. Only the instruction's
 * own sum of two must not saturate: right rows keep the sum of two neighbours' sizes within 127, and
 * 255 * 127 is less than 2^15. */
UNIT static inline void multiply(
    const uint8_t *band, const int16_t *shifts, const int8_t *panel, int64_t depth,
    __m256i sums[2 * BAND]
) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    __m256i s4 = s0, s5 = s0, s6 = s0, s7 = s0;
#define ROW(q, x, y)                                                                               \
    {                                                                                              \
        int32_t quad;                                                                              \
        memcpy(&quad, band + QUAD * q, QUAD);                                                      \
        const __m256i v = _mm256_set1_epi32(quad);                                                 \
        const __m256i t = _mm256_maddubs_epi16(v, b0), u = _mm256_maddubs_epi16(v, b1);            \
        x = _mm256_add_epi16(x, t);                                                                \
        y = _mm256_add_epi16(y, u);                                                                \
        IN_ORDER(x);                                                                               \
        IN_ORDER(y);                                                                               \
    }
#define STEP                                                                                       \
    {                                                                                              \
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)panel);                             \
        const __m256i b1 = _mm256_loadu_si256((const __m256i *)(panel + 32));                      \
        ROW(0, x0, x1)                                                                             \
        ROW(1, x2, x3)                                                                             \
        ROW(2, x4, x5)                                                                             \
        ROW(3, x6, x7)                                                                             \
        panel += QUAD * PANEL;                                                                     \
        band += QUAD * BAND;                                                                       \
    }
    for (int64_t d = 0; d < depth; d += CHUNK_DEPTH, shifts += 2 * PANEL) {
        __m256i x0 = _mm256_loadu_si256((const __m256i *)shifts);
        __m256i x1 = _mm256_loadu_si256((const __m256i *)(shifts + PANEL));
        __m256i x2 = x0, x3 = x1, x4 = x0, x5 = x1, x6 = x0, x7 = x1;
        STEP STEP STEP STEP STEP STEP STEP STEP
        s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(x0, ones));
        s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(x1, ones));
        s2 = _mm256_add_epi32(s2, _mm256_madd_epi16(x2, ones));
        s3 = _mm256_add_epi32(s3, _mm256_madd_epi16(x3, ones));
        s4 = _mm256_add_epi32(s4, _mm256_madd_epi16(x4, ones));
        s5 = _mm256_add_epi32(s5, _mm256_madd_epi16(x5, ones));
        s6 = _mm256_add_epi32(s6, _mm256_madd_epi16(x6, ones));
        s7 = _mm256_add_epi32(s7, _mm256_madd_epi16(x7, ones));
    }
#undef STEP
#undef ROW
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    sums[4] = s4, sums[5] = s5, sums[6] = s6, sums[7] = s7;
}

/* The same for rows too long for that: each sum of two goes to 32 bits by itself. */
UNIT static void multiply_long(
    const uint8_t *band, const int32_t *shift, const int8_t *panel, int64_t depth,
    __m256i sums[2 * BAND]
) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int q = 0; q < 2 * BAND; q++)
        sums[q] = _mm256_loadu_si256((const __m256i *)(shift + 8 * (q & 1)));
    for (int64_t d = 0; d < depth; d += QUAD, panel += QUAD * PANEL, band += QUAD * BAND) {
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)panel);
        const __m256i b1 = _mm256_loadu_si256((const __m256i *)(panel + 32));
        for (int q = 0; q < BAND; q++) {
            int32_t quad;
            memcpy(&quad, band + QUAD * q, QUAD);
            const __m256i v = _mm256_set1_epi32(quad);
            sums[2 * q] = _mm256_add_epi32(
                sums[2 * q], _mm256_madd_epi16(_mm256_maddubs_epi16(v, b0), ones));
            sums[2 * q + 1] = _mm256_add_epi32(
                sums[2 * q + 1], _mm256_madd_epi16(_mm256_maddubs_epi16(v, b1), ones));
        }
    }
}

UNIT static inline int avx2_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    const __m256i more0 = _mm256_loadu_si256((const __m256i *)panel->bias);
    const __m256i more1 = _mm256_loadu_si256((const __m256i *)(panel->bias + 8));
    const __m256i bar0 = _mm256_loadu_si256((const __m256i *)panel->bar);
    const __m256i bar1 = _mm256_loadu_si256((const __m256i *)(panel->bar + 8));
    __m256i sums[2 * BAND], hits[2 * BAND], any = _mm256_setzero_si256();
    if (small)
        multiply(band, panel->shifts, panel->quads, depth, sums);
    else
        multiply_long(band, panel->head->shift, panel->quads, depth, sums);
    for (int q = 0; q < BAND; q++) {
        const __m256i mine = _mm256_set1_epi32(bias[q]), asked = _mm256_set1_epi32(bar[q]);
        const __m256i x = _mm256_add_epi32(_mm256_add_epi32(sums[2 * q], more0), mine);
        const __m256i y = _mm256_add_epi32(_mm256_add_epi32(sums[2 * q + 1], more1), mine);
        hits[2 * q] = _mm256_or_si256(_mm256_cmpgt_epi32(x, asked), _mm256_cmpgt_epi32(x, bar0));
        hits[2 * q + 1] =
            _mm256_or_si256(_mm256_cmpgt_epi32(y, asked), _mm256_cmpgt_epi32(y, bar1));
        any = _mm256_or_si256(any, _mm256_or_si256(hits[2 * q], hits[2 * q + 1]));
    }
    if (_mm256_testz_si256(any, any)) return 0;
    for (int q = 0; q < BAND; q++)
        masks[q] = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(hits[2 * q])) |
                   (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(hits[2 * q + 1])) << 8;
    return 1;
}

UNIT static int avx2_scan_tile(void *given) {
    Tile *job = given;
    const int64_t n_right = job->n_right;
    const float *right_floor = job->right_floor;
    for (int64_t i = 0; i < job->n_left; i++) {
        const float *row = job->tile + i * job->stride;
        const float floor = job->left_floor[i];
        const __m256 asked = _mm256_set1_ps(floor);
        for (int64_t j = 0; j < n_right; j += 8) {
            unsigned found = 0;
            if (j + 8 <= n_right) {
                const __m256 x = _mm256_loadu_ps(row + j);
                found = (unsigned)_mm256_movemask_ps(_mm256_or_ps(
                    _mm256_cmp_ps(x, asked, _CMP_GE_OQ),
                    _mm256_cmp_ps(x, _mm256_loadu_ps(right_floor + j), _CMP_GE_OQ)));
            } else {
                for (int64_t c = j; c < n_right; c++)
                    if (row[c] >= floor || row[c] >= right_floor[c]) found |= 1u << (c - j);
            }
            for (; found; found &= found - 1) {
                const int64_t c = j + __builtin_ctz(found);
                if (row[c] >= floor && push(&job->by_left, job->first + i, c, row[c])) return FULL;
                if (row[c] >= right_floor[c] && push(&job->by_right, c, job->first + i, row[c])) return FULL;
            }
        }
    }
    return DONE;
}

const Unit avx2_unit = {
    .name = "avx2",
    .runs = avx2_runs,
    .loops = {
        [PRODUCTS_FLOAT] = avx2_products,
        [PRODUCTS_SUMMED] = avx2_products_summed,
        [PRODUCTS_DOUBLE] = avx2_products_double,
        [ROUND] = avx2_round,
        [PACK] = avx2_pack,
        [SCAN_INTEGERS] = avx2_scan_integers,
        [SCAN_TILE] = avx2_scan_tile,
    },
};

#endif
