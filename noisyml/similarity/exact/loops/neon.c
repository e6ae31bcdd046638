/* The scan of integer rows for 64-bit ARM: one unit with the dot products of ARMv8.2, and one for
 * processors without them. All else is plain C, of which compilers make NEON's instructions there. */

#include "loops.h"

#ifdef ARM

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define BAND 4
#define PRODUCT plain_product
#define STRETCH plain_longest_stretch
/* Registers for the sums of a panel. */
#define PARTS (PANEL / 4)

/* Masks from the sums of a band and a panel, see passed(). */
static inline int masks_of(
    int32x4_t sums[BAND][PARTS], const int32_t *bias, const int32_t *bar, const int32_t *more,
    const int32_t *asked, uint32_t masks[BAND]
) {
    static const uint32_t bits[4] = {1, 2, 4, 8};
    const uint32x4_t bit = vld1q_u32(bits);
    uint32_t any = 0;
    for (int q = 0; q < BAND; q++) {
        masks[q] = 0;
        for (int p = 0; p < PARTS; p++) {
            const int32x4_t x =
                vaddq_s32(vaddq_s32(sums[q][p], vld1q_s32(more + 4 * p)), vdupq_n_s32(bias[q]));
            const uint32x4_t hits = vorrq_u32(
                vcgtq_s32(x, vdupq_n_s32(bar[q])), vcgtq_s32(x, vld1q_s32(asked + 4 * p)));
            masks[q] |= vaddvq_u32(vandq_u32(hits, bit)) << (4 * p);
        }
        any |= masks[q];
    }
    return any != 0;
}

/* The next quads of the left rows with their signs. */
static inline int8x16_t signed_quads(const uint8_t *band) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(band), vdupq_n_u8(ZERO)));
}

#define UNIT
#define OF(name) neon_##name
#include "scan.h"

static inline int neon_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    (void)small;
    const int8_t *quads = panel->quads;
    int32x4_t sums[BAND][PARTS];
    for (int q = 0; q < BAND; q++)
        for (int p = 0; p < PARTS; p++) sums[q][p] = vdupq_n_s32(0);
    for (int64_t d = 0; d < depth; d += QUAD, quads += QUAD * PANEL, band += QUAD * BAND) {
        const int32x4_t left = vreinterpretq_s32_s8(signed_quads(band));
        const int8x8_t rows[BAND] = {
            vreinterpret_s8_s32(vdup_laneq_s32(left, 0)),
            vreinterpret_s8_s32(vdup_laneq_s32(left, 1)),
            vreinterpret_s8_s32(vdup_laneq_s32(left, 2)),
            vreinterpret_s8_s32(vdup_laneq_s32(left, 3)),
        };
        for (int p = 0; p < PARTS; p++) {
            const int8x16_t right = vld1q_s8(quads + 4 * QUAD * p);
            for (int q = 0; q < BAND; q++) {
                /* Neighbours' sizes are at most LIMIT together, so that 16 bits hold their sums. */
                const int16x8_t two = vpaddq_s16(
                    vmull_s8(rows[q], vget_low_s8(right)), vmull_s8(rows[q], vget_high_s8(right)));
                sums[q][p] = vpadalq_s16(sums[q][p], two);
            }
        }
    }
    return masks_of(sums, bias, bar, panel->bias, panel->bar, masks);
}

static int neon_runs(void) { return 1; }

#undef UNIT
#undef OF
#if defined(__clang__)
#define UNIT __attribute__((target("dotprod")))
#else
#define UNIT __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define OF(name) neondot_##name
#include "scan.h"

UNIT static inline int neondot_passed(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
) {
    (void)small;
    const int8_t *quads = panel->quads;
    int32x4_t sums[BAND][PARTS];
    for (int q = 0; q < BAND; q++)
        for (int p = 0; p < PARTS; p++) sums[q][p] = vdupq_n_s32(0);
    for (int64_t d = 0; d < depth; d += QUAD, quads += QUAD * PANEL, band += QUAD * BAND) {
        const int8x16_t left = signed_quads(band);
        for (int p = 0; p < PARTS; p++) {
            const int8x16_t right = vld1q_s8(quads + 4 * QUAD * p);
            sums[0][p] = vdotq_laneq_s32(sums[0][p], right, left, 0);
            sums[1][p] = vdotq_laneq_s32(sums[1][p], right, left, 1);
            sums[2][p] = vdotq_laneq_s32(sums[2][p], right, left, 2);
            sums[3][p] = vdotq_laneq_s32(sums[3][p], right, left, 3);
        }
    }
    return masks_of(sums, bias, bar, panel->bias, panel->bar, masks);
}

static int neondot_runs(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__) && defined(HWCAP_ASIMDDP)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return 0;
#endif
}

#define WITH_SCAN(unit)                                                                            \
    const Unit unit##_unit = {                                                                     \
        .name = #unit,                                                                             \
        .runs = unit##_runs,                                                                       \
        .base = &plain_unit,                                                                       \
        .loops = {[SCAN_INTEGERS] = unit##_scan_integers},                                        \
    };

WITH_SCAN(neon)
WITH_SCAN(neondot)

#endif
