/* Loops of the exact search that no PyTorch operation covers: see noisyml/similarity/exact/kernels.py.
 *
 * Plain C without Python's headers, for x86-64 with AVX2; elsewhere nothing is offered and the
 * caller takes its other way. Every loop takes one job, a struct, and touches only what stands in
 * it; noisyml_in_threads() runs it on several jobs at once.
 */

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Changes with every change of an entry point; kernels.py knows which one it needs. */
#define INTERFACE 5

EXPORT int noisyml_interface(void) { return INTERFACE; }

/* Pairs found so far, and room for `capacity` of them. */
typedef struct {
    int32_t *query;
    int32_t *place;
    float *score;
    int64_t count;
    int64_t capacity;
} Found;

enum { DONE = 0, FULL = 1, NO_MEMORY = 2 };

typedef int (*Loop)(void *job);
/* GOMP_parallel(): runs `work` on `threads` threads that it keeps. */
typedef void (*Team)(void (*work)(void *), void *given, unsigned threads, unsigned flags);

typedef struct {
    Loop loop;
    char *jobs;
    int64_t size, n, taken;
    int result;
} Work;

/* Does jobs until there are none left. */
static void do_jobs(void *given) {
    Work *work = given;
    for (;;) {
        const int64_t i = __atomic_fetch_add(&work->taken, 1, __ATOMIC_RELAXED);
        if (i >= work->n) return;
        const int result = work->loop(work->jobs + i * work->size);
        int largest = __atomic_load_n(&work->result, __ATOMIC_RELAXED);
        while (result > largest &&
               !__atomic_compare_exchange_n(
                   &work->result, &largest, result, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    }
}

static void *started(void *given) {
    do_jobs(given);
    return NULL;
}

/* Runs `loop` on each of `n` jobs of `size` bytes, by as many threads; the largest of what they
 * return. The threads are those of `team`: whoever else uses them lets them spin for a while when
 * he is done, and threads of our own would get less of the processor meanwhile. Without a team they
 * are our own, and gone when this returns. */
EXPORT int noisyml_in_threads(Team team, Loop loop, char *jobs, int64_t size, int64_t n) {
    Work work = {loop, jobs, size, n, 0, DONE};
    if (n > 1 && team) {
        team(do_jobs, &work, (unsigned)n, 0);
        return work.result;
    }
    pthread_t *threads = n > 1 ? malloc((size_t)(n - 1) * sizeof *threads) : NULL;
    int64_t running = 0;
    /* Where a thread cannot be had the others do its jobs. */
    while (threads && running < n - 1 &&
           !pthread_create(&threads[running], NULL, started, &work))
        running++;
    do_jobs(&work);
    for (int64_t i = 0; i < running; i++) pthread_join(threads[i], NULL);
    free(threads);
    return work.result;
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))

/* Right rows that are multiplied together: two registers of eight 32-bit sums. */
#define PANEL 16
/* Left rows that are. */
#define BAND 4
/* Coordinates of a row in one 32-bit lane; its halves sum two each. */
#define QUAD 4
/* Quads whose products are summed in 16 bits before they go to 32. */
#define CHUNK 8
#define CHUNK_DEPTH (QUAD * CHUNK)
/* Left rows are moved above zero, because the instruction takes one side unsigned. */
#define ZERO 128
/* Sizes of two neighbours add up to at most this. */
#define LIMIT 127
/* What 16 bits hold. */
#define LARGEST 32767
/* Integer and float rows of the left side that stay in the second-level cache. */
#define CACHED_BYTES (320 * 1024)

/* Right rows in the order in which they are multiplied, see noisyml_pack(): this, then for each
 * chunk PANEL pairs of 16-bit shifts, then the quads of all rows in turn. */
typedef struct {
    int32_t largest;         /* square of the longest stretch of a row that is summed in 16 bits */
    int32_t unused[7];
    int32_t shift[PANEL];    /* of sums in 32 bits: -ZERO times the sum of the row */
} Head;

static int64_t panel_bytes(int64_t depth) {
    const int64_t shifts = depth / CHUNK_DEPTH * PANEL * 2 * (int64_t)sizeof(int16_t);
    return (int64_t)sizeof(Head) + shifts + PANEL * depth;
}

EXPORT int noisyml_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int push(Found *found, int64_t query, int64_t place, float score) {
    if (found->count == found->capacity) return FULL;
    found->query[found->count] = (int32_t)query;
    found->place[found->count] = (int32_t)place;
    found->score[found->count] = score;
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

/* out[i] = left[rows[i]] . right[columns[i]]; `left`, `right` and `out` of a type that the loop
 * knows. */
typedef struct {
    const void *left, *right;
    int64_t width;
    const int64_t *rows, *columns;
    int64_t n;
    void *out;
} Products;

#define PRODUCTS(name, of, Number, Sum)                                                            \
    AVX2 EXPORT int name(void *given) {                                                            \
        const Products *job = given;                                                               \
        const Number *left = job->left, *right = job->right;                                       \
        Sum *out = job->out;                                                                       \
        const int64_t width = job->width;                                                          \
        for (int64_t i = 0; i < job->n; i++)                                                       \
            out[i] = of(left + job->rows[i] * width, right + job->columns[i] * width, width);      \
        return DONE;                                                                               \
    }

PRODUCTS(noisyml_products, product, float, float)
PRODUCTS(noisyml_products_summed, product_summed, float, double) /* summed in 64 bits */
PRODUCTS(noisyml_products_double, product_double, double, double)

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
AVX2 static inline void multiply(
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
AVX2 static void multiply_long(
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

/* Of eight numbers the sums of the even and of the odd ones, in the first two places. */
AVX2 static inline __m128i even_and_odd(__m256i x) {
    const __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_add_epi32(y, _mm_unpackhi_epi64(y, y));
}

/* Square of the longest stretch of a row that is summed in 16 bits; `sums`, if not null, gets the
 * sums of all stretches, two a chunk. */
AVX2 static int32_t longest_stretch(const int8_t *row, int64_t depth, int32_t *sums) {
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

EXPORT int64_t noisyml_panel_bytes(int64_t depth) { return panel_bytes(depth); }

/* Right rows as multiply() reads them, whole panels of them; rows that are not there are zero. */
typedef struct {
    const int8_t *rows;
    int64_t n, depth;
    int8_t *packed;
} Pack;

EXPORT int noisyml_pack(void *given) {
    const Pack *job = given;
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
        int8_t *quads = (int8_t *)(shifts + chunks * 2 * PANEL);
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

/* Left rows above zero, bands of them, quad by quad; and the squares of the bands' longest
 * stretches. */
static void fill_bands(
    const int8_t *rows, int64_t n, int64_t depth, uint8_t *bands, int32_t *largest
) {
    for (int64_t first = 0; first < n; first += BAND, bands += BAND * depth, largest++) {
        *largest = 0;
        memset(bands, ZERO, (size_t)(BAND * depth));
        for (int64_t r = 0; r < BAND && first + r < n; r++) {
            const int8_t *row = rows + (first + r) * depth;
            const int32_t longest = longest_stretch(row, depth, NULL);
            if (longest > *largest) *largest = longest;
            for (int64_t d = 0; d < depth; d += QUAD) {
                uint32_t quad;
                memcpy(&quad, row + d, QUAD);
                quad ^= 0x80808080; /* adds ZERO to each */
                memcpy(bands + d * BAND + QUAD * r, &quad, QUAD);
            }
        }
    }
}

/* Two numbers moved towards zero until their sizes add up to LIMIT at most. */
static void shorten(int32_t *two) {
    const int32_t a = abs(two[0]), b = abs(two[1]), over = a + b - LIMIT;
    if (over <= 0) return;
    const int32_t less = a < b ? a : b, from_less = over / 2 < less ? over / 2 : less;
    const int32_t from_a = a < b ? from_less : over - from_less;
    two[0] = two[0] < 0 ? from_a - a : a - from_a;
    two[1] = two[1] < 0 ? over - from_a - b : b - (over - from_a);
}

/* Float rows in whole multiples of `step`, which fit as multiply() asks, with zeros up to `depth`;
 * and the norms of what is lost. */
typedef struct {
    const float *rows;
    int64_t n, width, depth;
    float step;
    int8_t *out;
    float *lost;
} Rounding;

AVX2 EXPORT int noisyml_round(void *given) {
    const Rounding *job = given;
    const int64_t width = job->width, depth = job->depth;
    const float *rows = job->rows;
    int8_t *out = job->out;
    const __m256 inverse = _mm256_set1_ps(1.0f / job->step), back = _mm256_set1_ps(job->step);
    const __m256i limit = _mm256_set1_epi32(LIMIT);
    for (int64_t r = 0; r < job->n; r++, rows += width, out += depth) {
        __m256 squares = _mm256_setzero_ps();
        for (int64_t d = 0; d < depth; d += 8) {
            float some[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (d < width)
                memcpy(some, rows + d, sizeof(float) * (size_t)(width - d < 8 ? width - d : 8));
            const __m256 x = _mm256_loadu_ps(some);
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
            const __m256 left = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(z), back, x);
            squares = _mm256_fmadd_ps(left, left, squares);
        }
        job->lost[r] = sqrtf(sum8(squares));
    }
    return DONE;
}

/* One side of a tile of integer rows: see IntegerSide in kernels.py. */
typedef struct {
    const int8_t *rows;
    const int32_t *bias, *bar;
    const int64_t *key;
    const float *exact;
    const float *floor;
} Side;

/* Pairs of left rows, numbered from `first` on, and right rows whose integer score exceeds the bar of either, with their float
 * scores, if these reach the floor. Keys that are equal mark pairs that do not count. FULL if more
 * than `most_looks` pairs pass the bars. */
typedef struct {
    Side left, right;
    int64_t first, n_left, n_right, depth, width, most_looks;
    Found by_left, by_right;
} Integers;

AVX2 EXPORT int noisyml_scan_integers(void *given) {
    Integers *job = given;
    const Side *left = &job->left, *right = &job->right;
    const int64_t n_left = job->n_left, n_right = job->n_right;
    const int64_t depth = job->depth, width = job->width;
    int64_t looks_left = job->most_looks;
    int64_t height = CACHED_BYTES / (depth + (int64_t)sizeof(float) * width) / BAND * BAND;
    if (height < BAND) height = BAND;
    if (height > n_left) height = (n_left + BAND - 1) / BAND * BAND;
    const int64_t shifts_at = (int64_t)sizeof(Head);
    const int64_t quads_at = panel_bytes(depth) - PANEL * depth;
    uint8_t *bands = malloc((size_t)(height * depth));
    int32_t *bias = malloc(sizeof(int32_t) * (size_t)height);
    int32_t *bar = malloc(sizeof(int32_t) * (size_t)height);
    int32_t *largest = malloc(sizeof(int32_t) * (size_t)height);
    int result = bands && bias && bar && largest ? DONE : NO_MEMORY;
    for (int64_t top = 0; top < n_left && result == DONE; top += height) {
        const int64_t here = n_left - top < height ? n_left - top : height;
        const int64_t filled = (here + BAND - 1) / BAND * BAND;
        fill_bands(left->rows + top * depth, here, depth, bands, largest);
        for (int64_t r = 0; r < filled; r++) {
            bias[r] = r < here ? left->bias[top + r] : 0;
            bar[r] = r < here ? left->bar[top + r] : INT32_MAX;
        }
        const int8_t *packed = right->rows;
        for (int64_t side = 0; side < n_right && result == DONE;
             side += PANEL, packed += panel_bytes(depth)) {
            int32_t padded_bias[PANEL], padded_bar[PANEL];
            for (int64_t c = 0; c < PANEL; c++) {
                padded_bias[c] = side + c < n_right ? right->bias[side + c] : INT32_MIN / 2;
                padded_bar[c] = side + c < n_right ? right->bar[side + c] : INT32_MAX;
            }
            const __m256i more0 = _mm256_loadu_si256((const __m256i *)padded_bias);
            const __m256i more1 = _mm256_loadu_si256((const __m256i *)(padded_bias + 8));
            const __m256i bar0 = _mm256_loadu_si256((const __m256i *)padded_bar);
            const __m256i bar1 = _mm256_loadu_si256((const __m256i *)(padded_bar + 8));
            const Head *head = (const Head *)packed;
            for (int64_t r = 0; r < filled && result == DONE; r += BAND) {
                __m256i sums[2 * BAND], hits[2 * BAND], any = _mm256_setzero_si256();
                if ((int64_t)largest[r / BAND] * head->largest <= (int64_t)LARGEST * LARGEST)
                    multiply(
                        bands + r * depth, (const int16_t *)(packed + shifts_at),
                        packed + quads_at, depth, sums);
                else
                    multiply_long(bands + r * depth, head->shift, packed + quads_at, depth, sums);
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
                        if (i >= n_left || j >= n_right || left->key[i] == right->key[j]) continue;
                        if (!looks_left--) result = FULL;
                        const float score =
                            product(left->exact + i * width, right->exact + j * width, width);
                        if (score >= left->floor[i])
                            result = push(&job->by_left, job->first + i, j, score);
                        if (score >= right->floor[j] && result == DONE)
                            result = push(&job->by_right, j, job->first + i, score);
                    }
                }
            }
        }
    }
    free(bands);
    free(bias);
    free(bar);
    free(largest);
    return result;
}

/* Entries of a float tile, whose rows are numbered from `first` on, that reach the floor of their
 * row or of their column. */
typedef struct {
    const float *tile;
    int64_t first, n_left, n_right, stride;
    const float *left_floor, *right_floor;
    Found by_left, by_right;
} Tile;

AVX2 EXPORT int noisyml_scan_tile(void *given) {
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

/* The best candidates of queries: see Shortlist in shortlist.py. */
typedef struct {
    float *scores;      /* [N, capacity], descending, the first `count` of a row */
    int32_t *index;
    int64_t *count;
    float *threshold;
    const float *margin;
    uint8_t *lost;
    int64_t k, capacity;
} Lists;

/* Candidates below it are of no interest. */
static inline float floor_of(const Lists *lists, int64_t q) {
    if (lists->lost[q]) return INFINITY;
    const float x = lists->threshold[q] - lists->margin[q];
    return x - (fabsf(x) * FLT_EPSILON + FLT_MIN); /* rounded down */
}

/* Candidates to sort in: those of the queries that number `part` of `parts` has. */
typedef struct {
    Lists lists;
    const int32_t *query, *place;
    const float *score;
    int64_t n, first_query, first_place, part, parts;
} Candidates;

/* Neighbouring queries that one thread has, so that threads do not write to the same cache lines. */
#define TOGETHER 64

EXPORT int noisyml_enter(void *given) {
    Candidates *job = given;
    Lists *lists = &job->lists;
    const int64_t k = lists->k, capacity = lists->capacity;
    for (int64_t i = 0; i < job->n; i++) {
        const int64_t q = job->query[i] + job->first_query;
        if (q / TOGETHER % job->parts != job->part) continue;
        const float score = job->score[i];
        if (!(score >= floor_of(lists, q))) continue;
        float *scores = lists->scores + q * capacity;
        int32_t *index = lists->index + q * capacity;
        int64_t count = lists->count[q];
        const int full = count == capacity;
        const float last = full ? scores[--count] : 0; /* makes room */
        int64_t at = count;
        for (; at > 0 && scores[at - 1] < score; at--) {
            scores[at] = scores[at - 1];
            index[at] = index[at - 1];
        }
        scores[at] = score;
        index[at] = (int32_t)(job->place[i] + job->first_place);
        count++;
        if (count >= k && scores[k - 1] > lists->threshold[q]) lists->threshold[q] = scores[k - 1];
        const float floor = floor_of(lists, q);
        while (count > 0 && scores[count - 1] < floor) count--;
        lists->count[q] = count;
        /* Thresholds only rise, but whoever has so many ties now is given up at once. */
        if (full && last >= floor) lists->lost[q] = 1;
    }
    return DONE;
}

/* Scores to count between the sorted ones of their rows: see count_between() in kernels.py. */
typedef struct {
    const double *sorted;    /* [b, width], descending, the first of a row that count */
    const double *margin;    /* [b] */
    const int64_t *lengths;  /* [b] */
    int32_t *counts;         /* [b, width + 1] */
    const int64_t *rows;
    const double *scores;
    int64_t *open;
    int64_t width, n, part, parts, n_open;
} Between;

EXPORT int noisyml_count_between(void *given) {
    Between *job = given;
    for (int64_t i = 0; i < job->n; i++) {
        const int64_t row = job->rows[i];
        if (row / TOGETHER % job->parts != job->part) continue;
        const double *sorted = job->sorted + row * job->width;
        const double margin = job->margin[row], high = job->scores[i] + margin;
        const int64_t length = job->lengths[row];
        /* The first that is not surely before. */
        int64_t from = 0, left = length;
        while (left > 0) {
            const int64_t half = left / 2;
            const int before = sorted[from + half] > high;
            from = before ? from + half + 1 : from;
            left = before ? left - half - 1 : half;
        }
        if (from < length && sorted[from] >= job->scores[i] - margin)
            job->open[job->n_open++] = i;
        else
            job->counts[row * (job->width + 1) + from]++;
    }
    return DONE;
}

/* How far along a row counts stay within their caps: see within_caps() in kernels.py. */
typedef struct {
    const int32_t *counts, *caps; /* [b, width + 1], [b, width] */
    const int64_t *rows;
    int64_t *lengths;
    int64_t width, n;
    double share, caution;
} Caps;

EXPORT int noisyml_within_caps(void *given) {
    Caps *job = given;
    for (int64_t i = 0; i < job->n; i++) {
        const int32_t *counts = job->counts + job->rows[i] * (job->width + 1);
        const int32_t *caps = job->caps + job->rows[i] * job->width;
        int64_t before = 0, m = 0;
        for (; m < job->width; m++) {
            before += counts[m];
            if (before > caps[m]) break;
            const double most = job->share * caps[m];
            if ((double)before > most && before - job->caution * sqrt((double)before) > most) break;
        }
        job->lengths[i] = m;
    }
    return DONE;
}

#else

EXPORT int noisyml_supported(void) { return 0; }

#endif
