/* The scan of integer rows for x86-64 with AVX-512: the quads of a panel are one register, its sums
 * another. Two units, one that sums neighbours in 16 bits as AVX2 does, and one with VNNI's sums of
 * four in 32 bits. All else is AVX2's, which such processors have too. */

#include "loops.h"

#ifdef X86

#include <immintrin.h>

#define BAND 8
#define PRODUCT avx2_product
#define STRETCH avx2_longest_stretch

#define UNIT __attribute__((target("avx512f,avx512bw")))
#define OF(name) avx512_##name
#include "scan.h"

/* The next quad of a left row, once for each right row. */
UNIT static inline __m512i repeated(const uint8_t *quad) {
    int32_t four;
    memcpy(&four, quad, QUAD);
    return _mm512_set1_epi32(four);
}

/* Masks from the sums of a band and a panel, see passed(). */
UNIT static inline int masks_of(
    const __m512i sums[BAND], const int32_t *bias, const int32_t *bar, const Panel *panel,
    uint32_t masks[BAND]
) {
    const __m512i more = _mm512_loadu_si512(panel->bias), asked = _mm512_loadu_si512(panel->bar);
    uint32_t any = 0;
    for (int q = 0; q < BAND; q++) {
        const __m512i x =
            _mm512_add_epi32(_mm512_add_epi32(sums[q], more), _mm512_set1_epi32(bias[q]));
        masks[q] = (uint32_t)_mm512_cmpgt_epi32_mask(x, _mm512_set1_epi32(bar[q])) |
                   (uint32_t)_mm512_cmpgt_epi32_mask(x, asked);
        any |= masks[q];
    }
    return any != 0;
}

UNIT static inline int avx512_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    const __m512i ones = _mm512_set1_epi16(1);
    const int8_t *quads = panel->quads;
    const int16_t *shifts = panel->shifts;
    __m512i sums[BAND];
    /* Why sums in 16 bits do no harm stands in avx2.c. */
    for (int q = 0; q < BAND; q++)
        sums[q] = small ? _mm512_setzero_si512() : _mm512_loadu_si512(panel->head->shift);
    for (int64_t d = 0; d < depth; d += CHUNK_DEPTH, shifts += 2 * PANEL) {
        __m512i part[BAND];
        if (small)
            for (int q = 0; q < BAND; q++) part[q] = _mm512_loadu_si512(shifts);
        for (int c = 0; c < CHUNK; c++, quads += QUAD * PANEL, band += QUAD * BAND) {
            const __m512i right = _mm512_loadu_si512(quads);
            for (int q = 0; q < BAND; q++) {
                const __m512i two = _mm512_maddubs_epi16(repeated(band + QUAD * q), right);
                if (small)
                    part[q] = _mm512_add_epi16(part[q], two);
                else
                    sums[q] = _mm512_add_epi32(sums[q], _mm512_madd_epi16(two, ones));
            }
        }
        if (small)
            for (int q = 0; q < BAND; q++)
                sums[q] = _mm512_add_epi32(sums[q], _mm512_madd_epi16(part[q], ones));
    }
    return masks_of(sums, bias, bar, panel, masks);
}

static int avx512_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512bw");
}

#undef UNIT
#undef OF
#define UNIT __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define OF(name) avx512vnni_##name
#include "scan.h"

UNIT static inline int avx512vnni_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    (void)small;
    const int8_t *quads = panel->quads;
    __m512i sums[BAND];
    for (int q = 0; q < BAND; q++) sums[q] = _mm512_loadu_si512(panel->head->shift);
    for (int64_t d = 0; d < depth; d += QUAD, quads += QUAD * PANEL, band += QUAD * BAND) {
        const __m512i right = _mm512_loadu_si512(quads);
        for (int q = 0; q < BAND; q++)
            sums[q] = _mm512_dpbusd_epi32(sums[q], repeated(band + QUAD * q), right);
    }
    return masks_of(sums, bias, bar, panel, masks);
}

static int avx512vnni_runs(void) {
    return avx512_runs() && __builtin_cpu_supports("avx512vnni");
}

/* A unit with AVX2's loops but for the scan. */
#define WITH_SCAN(unit)                                                                            \
    const Unit unit##_unit = {                                                                     \
        .name = #unit,                                                                             \
        .runs = unit##_runs,                                                                       \
        .base = &avx2_unit,                                                                        \
        .loops = {[SCAN_INTEGERS] = unit##_scan_integers},                                        \
    };

WITH_SCAN(avx512)
WITH_SCAN(avx512vnni)

#endif
