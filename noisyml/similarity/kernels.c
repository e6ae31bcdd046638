/* Loops of the exact search that no PyTorch operation covers: see noisyml/similarity/kernels.py.
 *
 * Plain C without Python's headers, for x86-64 with AVX2; elsewhere nothing is offered and the
 * caller takes its other way. Every entry point touches only what it is given and may run in
 * several threads at once.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Changes with every change of an entry point; kernels.py knows which one it needs. */
#define INTERFACE 1

EXPORT int noisyml_interface(void) { return INTERFACE; }

/* Pairs found so far, room for `capacity` of them; their scores if there is room for these. */
typedef struct {
    int32_t *query;
    int32_t *place;
    float *score;
    int64_t count;
    int64_t capacity;
} Found;

enum { DONE = 0, FULL = 1, NO_MEMORY = 2 };

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))

/* Right rows that are multiplied together: two registers of eight 32-bit sums. */
#define PANEL 16
/* Left rows that are. */
#define BAND 4
/* Coordinates per step: two products fit into 16 bits, see multiply(). */
#define STEP 8
/* Left rows lie above zero, because the instruction takes one side unsigned. */
#define ZERO 64
/* Left rows, of 7 and 16 bits, that stay in the second-level cache while all panels pass. */
#define CACHED_BYTES (320 * 1024)
EXPORT int noisyml_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int push(Found *found, int64_t query, int64_t place, float score) {
    if (found->count == found->capacity) return FULL;
    found->query[found->count] = (int32_t)query;
    found->place[found->count] = (int32_t)place;
    if (found->score) found->score[found->count] = score;
    found->count++;
    return DONE;
}

AVX2 static inline float sum8(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

AVX2 static float product(const float *a, const float *b, int64_t width) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    int64_t d = 0;
    for (; d + 32 <= width; d += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + d), _mm256_loadu_ps(b + d), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + d + 8), _mm256_loadu_ps(b + d + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + d + 16), _mm256_loadu_ps(b + d + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + d + 24), _mm256_loadu_ps(b + d + 24), s3);
    }
    for (; d + 8 <= width; d += 8)
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + d), _mm256_loadu_ps(b + d), s0);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

AVX2 static double product_summed(const float *a, const float *b, int64_t width) {
    __m256d s0 = _mm256_setzero_pd(), s1 = s0;
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        s0 = _mm256_fmadd_pd(
            _mm256_cvtps_pd(_mm_loadu_ps(a + d)), _mm256_cvtps_pd(_mm_loadu_ps(b + d)), s0);
        s1 = _mm256_fmadd_pd(
            _mm256_cvtps_pd(_mm_loadu_ps(a + d + 4)), _mm256_cvtps_pd(_mm_loadu_ps(b + d + 4)), s1);
    }
    double part[4];
    _mm256_storeu_pd(part, _mm256_add_pd(s0, s1));
    double sum = (part[0] + part[1]) + (part[2] + part[3]);
    for (; d < width; d++) sum += (double)a[d] * b[d];
    return sum;
}

AVX2 static double product_double(const double *a, const double *b, int64_t width) {
    __m256d s0 = _mm256_setzero_pd(), s1 = s0, s2 = s0, s3 = s0;
    int64_t d = 0;
    for (; d + 16 <= width; d += 16) {
        s0 = _mm256_fmadd_pd(_mm256_loadu_pd(a + d), _mm256_loadu_pd(b + d), s0);
        s1 = _mm256_fmadd_pd(_mm256_loadu_pd(a + d + 4), _mm256_loadu_pd(b + d + 4), s1);
        s2 = _mm256_fmadd_pd(_mm256_loadu_pd(a + d + 8), _mm256_loadu_pd(b + d + 8), s2);
        s3 = _mm256_fmadd_pd(_mm256_loadu_pd(a + d + 12), _mm256_loadu_pd(b + d + 12), s3);
    }
    double part[4];
    _mm256_storeu_pd(part, _mm256_add_pd(_mm256_add_pd(s0, s1), _mm256_add_pd(s2, s3)));
    double sum = (part[0] + part[1]) + (part[2] + part[3]);
    for (; d < width; d++) sum += a[d] * b[d];
    return sum;
}

/* out[i] = left[rows[i]] . right[columns[i]] */
AVX2 EXPORT void noisyml_products(
    const float *left, const float *right, int64_t width,
    const int64_t *rows, const int64_t *columns, int64_t n, float *out
) {
    for (int64_t i = 0; i < n; i++)
        out[i] = product(left + rows[i] * width, right + columns[i] * width, width);
}

/* The same summed in 64 bits. */
AVX2 EXPORT void noisyml_products_summed(
    const float *left, const float *right, int64_t width,
    const int64_t *rows, const int64_t *columns, int64_t n, double *out
) {
    for (int64_t i = 0; i < n; i++)
        out[i] = product_summed(left + rows[i] * width, right + columns[i] * width, width);
}

AVX2 EXPORT void noisyml_products_double(
    const double *left, const double *right, int64_t width,
    const int64_t *rows, const int64_t *columns, int64_t n, double *out
) {
    for (int64_t i = 0; i < n; i++)
        out[i] = product_double(left + rows[i] * width, right + columns[i] * width, width);
}

/* Sums of a band of left rows, unsigned and within 127, and a panel of right rows, within 63 of
 * zero: two products are at most 2 * 127 * 63 = 16,002, and two such pairs fit into 16 bits. */
AVX2 static inline void multiply(
    const uint8_t *left, const int8_t *panel, int64_t depth, __m256i sums[2 * BAND]
) {
    const uint8_t *a0 = left, *a1 = a0 + depth, *a2 = a1 + depth, *a3 = a2 + depth;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s00 = _mm256_setzero_si256(), s01 = s00, s10 = s00, s11 = s00;
    __m256i s20 = s00, s21 = s00, s30 = s00, s31 = s00;
#define ROW(a, x, y)                                                                               \
    {                                                                                              \
        int32_t four, next;                                                                        \
        memcpy(&four, a + d, 4);                                                                   \
        memcpy(&next, a + d + 4, 4);                                                               \
        const __m256i v = _mm256_set1_epi32(four), w = _mm256_set1_epi32(next);                    \
        x = _mm256_add_epi32(x, _mm256_madd_epi16(_mm256_add_epi16(                                \
            _mm256_maddubs_epi16(v, b0), _mm256_maddubs_epi16(w, b2)), ones));                     \
        y = _mm256_add_epi32(y, _mm256_madd_epi16(_mm256_add_epi16(                                \
            _mm256_maddubs_epi16(v, b1), _mm256_maddubs_epi16(w, b3)), ones));                     \
    }
    for (int64_t d = 0; d < depth; d += STEP, panel += STEP * PANEL) {
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)panel);
        const __m256i b1 = _mm256_loadu_si256((const __m256i *)(panel + 32));
        const __m256i b2 = _mm256_loadu_si256((const __m256i *)(panel + 64));
        const __m256i b3 = _mm256_loadu_si256((const __m256i *)(panel + 96));
        ROW(a0, s00, s01)
        ROW(a1, s10, s11)
        ROW(a2, s20, s21)
        ROW(a3, s30, s31)
    }
#undef ROW
    sums[0] = s00, sums[1] = s01, sums[2] = s10, sums[3] = s11;
    sums[4] = s20, sums[5] = s21, sums[6] = s30, sums[7] = s31;
}

/* Right rows in the order in which multiply() reads them: four coordinates of all of them, then
 * the next four; rows that are not there are zero. */
static void pack(const int8_t *rows, int64_t n, int64_t depth, int8_t *panel) {
    for (int64_t r = 0; r < PANEL; r++) {
        int8_t *to = panel + 4 * r;
        if (r >= n) {
            for (int64_t d = 0; d < depth; d += 4, to += 4 * PANEL) memset(to, 0, 4);
            continue;
        }
        const int8_t *from = rows + r * depth;
        for (int64_t d = 0; d < depth; d += 4, to += 4 * PANEL) memcpy(to, from + d, 4);
    }
}

/* Rows in the order in which multiply() reads them, whole panels of them. */
EXPORT void noisyml_pack(const int8_t *rows, int64_t n, int64_t depth, int8_t *packed) {
    for (int64_t r = 0; r < n; r += PANEL)
        pack(rows + r * depth, n - r, depth, packed + r * depth);
}

/* Float rows in multiples of 1 / scale, rounded; `padded` - width zeros behind each. */
AVX2 EXPORT void noisyml_shorten(
    const float *rows, int64_t n, int64_t width, int64_t padded, float scale, int16_t *out
) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (int64_t r = 0; r < n; r++, rows += width, out += padded) {
        int64_t d = 0;
        for (; d + 16 <= width; d += 16) {
            const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(rows + d), factor));
            const __m256i high =
                _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(rows + d + 8), factor));
            _mm256_storeu_si256(
                (__m256i *)(out + d),
                _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
        }
        for (; d < width; d++)
            out[d] = (int16_t)_mm_cvtss_si32(_mm_set_ss(rows[d] * scale));
        memset(out + width, 0, sizeof(int16_t) * (size_t)(padded - width));
    }
}

/* The caller sees to it that no partial sum leaves 32 bits. */
AVX2 static int32_t product_short(const int16_t *a, const int16_t *b, int64_t width) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
    for (int64_t d = 0; d < width; d += 32) {
        s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(
            _mm256_loadu_si256((const __m256i *)(a + d)),
            _mm256_loadu_si256((const __m256i *)(b + d))));
        s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(
            _mm256_loadu_si256((const __m256i *)(a + d + 16)),
            _mm256_loadu_si256((const __m256i *)(b + d + 16))));
    }
    s0 = _mm256_add_epi32(s0, s1);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(s0), _mm256_extracti128_si256(s0, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

/* Pairs of left and right rows whose 7-bit score exceeds the bar of either, and whose 16-bit score
 * exceeds the finer bar too. Keys that are equal mark pairs that do not count. */
AVX2 EXPORT int noisyml_scan_integers(
    const int8_t *left, int64_t n_left, const int8_t *packed, int64_t n_right, int64_t depth,
    const int32_t *left_bias, const int32_t *right_bias,
    const int32_t *left_bar, const int32_t *right_bar,
    const int64_t *left_key, const int64_t *right_key,
    const int16_t *left_rows, const int16_t *right_rows, int64_t width,
    const int32_t *left_finer, const int32_t *right_finer,
    Found *by_left, Found *by_right
) {
    int64_t height = CACHED_BYTES / (depth + 2 * width) / BAND * BAND;
    if (height < BAND) height = BAND;
    if (height > n_left) height = (n_left + BAND - 1) / BAND * BAND;
    uint8_t *block = malloc((size_t)(height * depth));
    int32_t *bias = malloc(sizeof(int32_t) * (size_t)height);
    int32_t *bar = malloc(sizeof(int32_t) * (size_t)height);
    int result = block && bias && bar ? DONE : NO_MEMORY;
    for (int64_t top = 0; top < n_left && result == DONE; top += height) {
        const int64_t here = n_left - top < height ? n_left - top : height;
        const int64_t filled = (here + BAND - 1) / BAND * BAND;
        for (int64_t i = 0; i < here * depth; i++)
            block[i] = (uint8_t)(left[top * depth + i] + ZERO);
        memset(block + here * depth, ZERO, (size_t)((filled - here) * depth));
        for (int64_t r = 0; r < filled; r++) {
            bias[r] = r < here ? left_bias[top + r] : 0;
            bar[r] = r < here ? left_bar[top + r] : INT32_MAX;
        }
        for (int64_t side = 0; side < n_right && result == DONE; side += PANEL) {
            const int8_t *panel = packed + side * depth;
            int32_t padded_bias[PANEL], padded_bar[PANEL];
            for (int64_t c = 0; c < PANEL; c++) {
                padded_bias[c] = side + c < n_right ? right_bias[side + c] : INT32_MIN / 2;
                padded_bar[c] = side + c < n_right ? right_bar[side + c] : INT32_MAX;
            }
            const __m256i more0 = _mm256_loadu_si256((const __m256i *)padded_bias);
            const __m256i more1 = _mm256_loadu_si256((const __m256i *)(padded_bias + 8));
            const __m256i bar0 = _mm256_loadu_si256((const __m256i *)padded_bar);
            const __m256i bar1 = _mm256_loadu_si256((const __m256i *)(padded_bar + 8));
            for (int64_t r = 0; r < filled && result == DONE; r += BAND) {
                __m256i sums[2 * BAND], hits[2 * BAND], any = _mm256_setzero_si256();
                multiply(block + r * depth, panel, depth, sums);
                for (int q = 0; q < BAND; q++) {
                    const __m256i mine = _mm256_set1_epi32(bias[r + q]);
                    const __m256i asked = _mm256_set1_epi32(bar[r + q]);
                    const __m256i x = _mm256_add_epi32(_mm256_add_epi32(sums[2 * q], more0), mine);
                    const __m256i y =
                        _mm256_add_epi32(_mm256_add_epi32(sums[2 * q + 1], more1), mine);
                    hits[2 * q] = _mm256_or_si256(
                        _mm256_cmpgt_epi32(x, asked), _mm256_cmpgt_epi32(x, bar0));
                    hits[2 * q + 1] = _mm256_or_si256(
                        _mm256_cmpgt_epi32(y, asked), _mm256_cmpgt_epi32(y, bar1));
                    any = _mm256_or_si256(any, _mm256_or_si256(hits[2 * q], hits[2 * q + 1]));
                }
                if (_mm256_testz_si256(any, any)) continue;
                for (int q = 0; q < 2 * BAND && result == DONE; q++) {
                    unsigned found =
                        (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(hits[q]));
                    const int64_t i = top + r + q / 2;
                    for (; found && result == DONE; found &= found - 1) {
                        const int64_t j = side + 8 * (q & 1) + __builtin_ctz(found);
                        /* Rows that fill up a band or a panel pass a bar that lets all through. */
                        if (i >= n_left || j >= n_right || left_key[i] == right_key[j]) continue;
                        const int32_t score =
                            product_short(left_rows + i * width, right_rows + j * width, width);
                        if (score > left_finer[i]) result = push(by_left, i, j, 0);
                        if (score > right_finer[j] && result == DONE)
                            result = push(by_right, j, i, 0);
                    }
                }
            }
        }
    }
    free(block);
    free(bias);
    free(bar);
    return result;
}

/* Entries of a float tile that reach the floor of their row or of their column. */
AVX2 EXPORT int noisyml_scan_tile(
    const float *tile, int64_t n_left, int64_t n_right, int64_t stride,
    const float *left_floor, const float *right_floor,
    Found *by_left, Found *by_right
) {
    for (int64_t i = 0; i < n_left; i++) {
        const float *row = tile + i * stride;
        const float floor = left_floor[i];
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
                if (row[c] >= floor && push(by_left, i, c, row[c])) return FULL;
                if (row[c] >= right_floor[c] && push(by_right, c, i, row[c])) return FULL;
            }
        }
    }
    return DONE;
}

#else

EXPORT int noisyml_supported(void) { return 0; }

#endif
