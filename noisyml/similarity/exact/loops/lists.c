/* Lists of candidates, and counts of negatives: loops that are the same for all vector units. */

#include <float.h>
#include <math.h>

#include "loops.h"

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

int noisyml_enter(void *given) {
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

int noisyml_count_between(void *given) {
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

int noisyml_within_caps(void *given) {
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
