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

/* True if part number `part` of `parts` has the query `q`. */
static inline int is_ours(int64_t q, int64_t part, int64_t parts) {
    /* Divisions of 32 bits take half the time; whichever group it is, all threads agree. */
    return parts == 1 || (uint32_t)(q / TOGETHER) % (uint32_t)parts == (uint32_t)part;
}

int noisyml_enter(void *given) {
    Candidates *job = given;
    Lists *lists = &job->lists;
    const int64_t k = lists->k, capacity = lists->capacity;
    for (int64_t i = 0; i < job->n; i++) {
        const int64_t q = job->query[i] + job->first_query;
        if (!is_ours(q, job->part, job->parts)) continue;
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
    const double *sorted;    /* [b, width], descending; the first of a row count */
    const double *margin;    /* [b] */
    const int64_t *lengths;  /* [b] */
    int32_t *counts;         /* [b, width + 1] */
    uint8_t *touched;        /* [b] */
    const int32_t *rows;
    const float *singles;    /* scores; null if they are doubles */
    const double *doubles;
    int64_t *open;
    int64_t width, n, part, parts, n_open;
} Between;

/* Scores that are looked up together: each waits for memory at every step, all of them at once. */
#define ABREAST 8

/* How many of each row's ranked scores are surely before: those above `high`. */
static inline void look_up(
    const double *const rows[ABREAST], int64_t width, const double high[ABREAST],
    int64_t before[ABREAST]
) {
    for (int l = 0; l < ABREAST; l++) before[l] = 0;
    for (int64_t left = width; left > 0;) {
        const int64_t half = (left + 1) / 2;
        /* No branch depends on a score: half of them would be guessed wrong. */
        for (int l = 0; l < ABREAST; l++)
            before[l] += half & -(int64_t)(rows[l][before[l] + half - 1] > high[l]);
        left -= half;
    }
}

int noisyml_count_between(void *given) {
    Between *job = given;
    const int64_t width = job->width;
    for (int64_t next = 0; next < job->n;) {
        int64_t at[ABREAST], before[ABREAST];
        const double *sorted[ABREAST];
        double score[ABREAST], high[ABREAST];
        int some = 0;
        for (; next < job->n && some < ABREAST; next++) {
            const int64_t row = job->rows[next];
            if (!is_ours(row, job->part, job->parts)) continue;
            sorted[some] = job->sorted + row * width;
            score[some] = job->singles ? job->singles[next] : job->doubles[next];
            high[some] = score[some] + job->margin[row];
            at[some++] = next;
        }
        if (!some) break;
        for (int l = some; l < ABREAST; l++) sorted[l] = sorted[0], high[l] = high[0];
        look_up(sorted, width, high, before);
        for (int l = 0; l < some; l++) {
            const int64_t i = at[l], row = job->rows[i], length = job->lengths[row];
            job->touched[row] = 1;
            const int64_t from = before[l] < length ? before[l] : length;
            if (from < length && sorted[l][from] >= score[l] - job->margin[row])
                job->open[job->n_open++] = i;
            else
                job->counts[row * (width + 1) + from]++;
        }
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
        if (job->share >= 1)
            while (m < job->width && (before += counts[m]) <= caps[m]) m++;
        for (; job->share < 1 && m < job->width; m++) {
            before += counts[m];
            if (before > caps[m]) break;
            const double most = job->share * caps[m];
            if ((double)before > most && before - job->caution * sqrt((double)before) > most) break;
        }
        job->lengths[i] = m;
    }
    return DONE;
}
