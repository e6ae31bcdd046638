/* Contradictions between the probabilities and the labels of samples, over pairs of classes. */

#include <math.h>

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

/* Takes the roots of the sums in a group; the largest, its place (the first) and the sum of all. */
typedef struct {
    float largest;
    int64_t place;
    double sum;
} Peak;

static Peak rooted(float *sums, int64_t n, float floor) {
    Peak peak = {-1, 0, 0};
    for (int64_t c = 0; c < n; c++) {
        sums[c] = sqrtf(sums[c] + floor);
        peak.sum += sums[c];
        if (sums[c] > peak.largest) peak.largest = sums[c], peak.place = c;
    }
    return peak;
}

int noisyml_rank_samples(void *given) {
    const Samples *job = given;
    const int64_t classes = job->classes;
    int64_t *absent = malloc(sizeof *absent * (size_t)(classes ? classes : 1));
    float *side = malloc(sizeof *side * 2 * (size_t)(classes ? classes : 1));
    if (!absent || !side) {
        free(absent);
        free(side);
        return NO_MEMORY;
    }
    float *sums = side + classes;
    for (int64_t s = 0; s < job->n; s++) {
        const float *p = job->p + s * classes;
        const uint8_t *present = job->present + s * classes;
        float *missing = job->missing + s * classes, *extra = job->extra + s * classes;
        int64_t n_absent = 0;
        for (int64_t c = 0; c < classes; c++) {
            if (present[c]) continue;
            absent[n_absent] = c;
            side[n_absent] = 1 + 2 * p[c];
            sums[n_absent++] = 0;
        }
        for (int64_t c = 0; c < classes; c++) {
            float sum = 0;
            if (present[c]) {
                const float other = 2 * p[c];
                for (int64_t a = 0; a < n_absent; a++) {
                    const float over = side[a] - other, cost = over > 0 ? over * over : 0;
                    sums[a] += cost;
                    sum += cost;
                }
            }
            extra[c] = sum;
            missing[c] = 0;
        }
        for (int64_t a = 0; a < n_absent; a++) missing[absent[a]] = sums[a];
        const Peak of_missing = rooted(missing, classes, (float)job->floor);
        const Peak of_extra = rooted(extra, classes, (float)job->floor);
        job->errors[s] =
            (float)(job->miss_alpha * of_missing.sum + job->extra_beta * of_extra.sum);
        job->suspected[s] =
            of_missing.largest > of_extra.largest ? of_missing.place : of_extra.place;
    }
    free(absent);
    free(side);
    return DONE;
}
