/* Contradictions between the probabilities and the labels of samples, over pairs of classes. */

#include <math.h>
#include <string.h>

#include "loops.h"

/* Samples to rank: see ranking_errors() in noisyml/losses/multilabel/rcml.py. */
typedef struct {
    const float *p;         /* [n, classes], probabilities */
    const uint8_t *present; /* [n, classes] */
    float *missing, *extra; /* [n, classes]: groups of absent and of present classes */
    float *errors;          /* [n] */
    int64_t *suspected;     /* [n] */
    int64_t n, classes;
    double floor, miss_alpha, extra_beta;
} Samples;

/* Absent classes that are looked at together; more of them than there are ask for nothing. */
#define LANES 8

/* The largest group, its place (the first) and the sum of all. */
typedef struct {
    float largest;
    int64_t place;
    double sum;
} Peak;

/* Takes the roots of the sums in the groups. */
static Peak rooted(float *sums, int64_t n, float floor) {
    Peak peak = {-1, 0, 0};
    for (int64_t c = 0; c < n; c++) sums[c] = sqrtf(sums[c] + floor);
    for (int64_t c = 0; c < n; c++) {
        peak.sum += sums[c];
        if (sums[c] > peak.largest) peak.largest = sums[c], peak.place = c;
    }
    return peak;
}

/* Adds the costs of a present class's pairs to the sums of the absent ones; their own sum. */
static float paired(const float *sides, float *sums, int64_t n, float other) {
    float own[LANES] = {0};
    for (int64_t a = 0; a < n; a += LANES)
        for (int l = 0; l < LANES; l++) {
            float over = sides[a + l] - other;
            over = over < 0 ? 0 : over; /* what is no number stays none */
            own[l] += over * over;
            sums[a + l] += over * over;
        }
    for (int l = 0; l < LANES / 2; l++) own[l] += own[l + LANES / 2];
    return (own[0] + own[2]) + (own[1] + own[3]);
}

int noisyml_rank_samples(void *given) {
    const Samples *job = given;
    const int64_t classes = job->classes;
    const size_t room = (size_t)(classes + LANES);
    int64_t *absent = malloc(sizeof *absent * room);
    float *sides = malloc(sizeof *sides * 2 * room), *sums = sides + room;
    if (!absent || !sides) {
        free(absent);
        free(sides);
        return NO_MEMORY;
    }
    for (int64_t s = 0; s < job->n; s++) {
        const float *p = job->p + s * classes;
        const uint8_t *present = job->present + s * classes;
        float *missing = job->missing + s * classes, *extra = job->extra + s * classes;
        int64_t n = 0;
        for (int64_t c = 0; c < classes; c++) {
            missing[c] = extra[c] = 0;
            absent[n] = c;
            sides[n] = 1 + 2 * p[c];
            n += !present[c];
        }
        for (int64_t a = n; a < n + LANES; a++) sides[a] = -INFINITY;
        memset(sums, 0, sizeof *sums * room);
        for (int64_t c = 0; c < classes; c++)
            if (present[c]) extra[c] = paired(sides, sums, n, 2 * p[c]);
        for (int64_t a = 0; a < n; a++) missing[absent[a]] = sums[a];
        const Peak of_missing = rooted(missing, classes, (float)job->floor);
        const Peak of_extra = rooted(extra, classes, (float)job->floor);
        job->errors[s] =
            (float)(job->miss_alpha * of_missing.sum + job->extra_beta * of_extra.sum);
        job->suspected[s] =
            of_missing.largest > of_extra.largest ? of_missing.place : of_extra.place;
    }
    free(absent);
    free(sides);
    return DONE;
}
