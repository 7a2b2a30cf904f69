/* Products of Givens rotations on rows, without PyTorch's headers: called through ctypes (native.py), which checks all arguments.

   Rows are float32 or bfloat16, the arithmetic is float32. There is no global state. Rows are divided among OpenMP threads; sums over rows
   are formed over fixed parts of them, so that results do not depend on the number of threads. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    GROUP = 4,          /* rows that share the loads of blocks */
    MAX_LEVELS = 31,
    PART = 128,         /* rows of one sum of gradients, at least */
    MAX_PARTS = 64
};

/* Levels of a row of width[0] values, for vectors of some lanes. Offsets are in floats, into the blocks and into the work of a row. */
typedef struct {
    int levels, width[MAX_LEVELS + 1], even_size[MAX_LEVELS + 1];
    size_t coef[MAX_LEVELS], coefs, even[MAX_LEVELS + 1], odd[MAX_LEVELS], row;
} Geometry;

typedef struct {
    char *first;
    int64_t stride; /* bytes */
    int is_half;
} Rows;

typedef struct {
    int lanes;
    void (*apply)(const Geometry *, const float *, const Rows *, const Rows *, int64_t, int64_t, int, float *);
    void (*gradients)(const Geometry *, const float *, const Rows *, const Rows *, const Rows *, int, int64_t, int64_t, float *, float *);
} Kernels;

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS char *row_of(const Rows *rows, int64_t number) { return rows->first + number * rows->stride; }

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2")
#define SET avx512
#define LANES 16
#include "rows.inc"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2")
#define SET avx2
#define LANES 8
#include "rows.inc"
#pragma GCC pop_options
#endif
#define SET base
#define LANES 4
#include "rows.inc"

/* level: 0 the baseline of the processor family, 1 AVX2, 2 AVX-512; more than the processor has counts as the best it has. */
static const Kernels *choose(int level) {
#if defined(__x86_64__)
    if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return &kernels_avx512;
    if (level >= 1 && __builtin_cpu_supports("avx2")) return &kernels_avx2;
#endif
    (void)level;
    return &kernels_base;
}

static void describe(Geometry *g, int d, int lanes) {
    g->levels = 0, g->coefs = 0, g->row = 0;
    for (int width = d;; width = (width + 1) / 2) {
        const int r = g->levels, vectors = (width + 2 * lanes - 1) / (2 * lanes);
        g->width[r] = width;
        g->even_size[r] = 2 * vectors * lanes;
        g->even[r] = g->row;
        if (r) g->row += (size_t)g->even_size[r]; /* level 0 is the row itself */
        if (width == 1) break;
        g->odd[r] = g->row, g->row += (size_t)vectors * lanes;
        g->coef[r] = g->coefs, g->coefs += (size_t)4 * vectors * lanes;
        g->levels++;
    }
    g->row += 16; /* rows of a group fall on different sets of the cache */
}

/* Copy blocks [d-1, 2, 2] to vectors of their entries, or the other way. Pairs beyond d are identities. */
static void pack(const Geometry *g, int lanes, const float *blocks, float *coef) {
    for (int r = 0; r < g->levels; r++) {
        float *c = coef + g->coef[r];
        const int pairs = g->width[r] / 2, padded = g->even_size[r] / 2;
        for (int p = 0; p < padded; p++)
            for (int entry = 0; entry < 4; entry++)
                c[(p / lanes * 4 + entry) * lanes + p % lanes] = p < pairs ? blocks[4 * p + entry] : (entry == 0 || entry == 3);
        blocks += 4 * pairs;
    }
}

static void unpack(const Geometry *g, int lanes, const float *coef, float *blocks) {
    for (int r = 0; r < g->levels; r++) {
        const float *c = coef + g->coef[r];
        const int pairs = g->width[r] / 2;
        for (int p = 0; p < pairs; p++)
            for (int entry = 0; entry < 4; entry++) blocks[4 * p + entry] = c[(p / lanes * 4 + entry) * lanes + p % lanes];
        blocks += 4 * pairs;
    }
}

static float *allocate(size_t floats) { return aligned_alloc(64, (4 * floats + 127) / 64 * 64); }

#define EXPORT __attribute__((visibility("default")))

EXPORT int givens_lanes(int level) { return choose(level)->lanes; }

/* y = R x, or R^T x with `transpose`, on `count` rows of d values. Strides are in values. Returns 0, or 1 if memory is short. */
EXPORT int givens_apply(int level, int is_half, int d, const float *blocks, void *x, int64_t x_stride, void *y, int64_t y_stride, int64_t count, int transpose, int threads) {
    const Kernels *kernels = choose(level);
    const int size = is_half ? 2 : 4;
    const Rows in = {x, x_stride * size, is_half}, out = {y, y_stride * size, is_half};
    Geometry g;
    describe(&g, d, kernels->lanes);
    const int64_t groups = (count + GROUP - 1) / GROUP;
    if (threads > groups) threads = groups > 0 ? (int)groups : 1;
    float *coef = allocate(g.coefs + (size_t)threads * GROUP * g.row);
    if (!coef) return 1;
    float *work = coef + g.coefs;
    pack(&g, kernels->lanes, blocks, coef);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        const int64_t from = groups * t / threads * GROUP, end = groups * (t + 1) / threads * GROUP;
        kernels->apply(&g, coef, &in, &out, from, end < count ? end : count, transpose, work + (size_t)t * GROUP * g.row);
    }
    free(coef);
    return 0;
}

/* Gradients of <b, R a> on `count` rows: of the blocks into grad [d-1, 2, 2]; into `out`, unless it is null, R a if want_ra, otherwise R^T b.
   `out` may be the rows that it replaces (a or b, respectively). */
EXPORT int givens_gradients(int level, int is_half, int d, const float *blocks, void *a, int64_t a_stride, void *b, int64_t b_stride, void *out, int64_t out_stride, int64_t count, int want_ra, float *grad, int threads) {
    const Kernels *kernels = choose(level);
    const int size = is_half ? 2 : 4;
    const Rows as = {a, a_stride * size, is_half}, bs = {b, b_stride * size, is_half}, outs = {out, out_stride * size, is_half};
    Geometry g;
    describe(&g, d, kernels->lanes);
    int64_t part = (count + MAX_PARTS - 1) / MAX_PARTS;
    part = part < PART ? PART : (part + GROUP - 1) / GROUP * GROUP;
    const int64_t parts = count > 0 ? (count + part - 1) / part : 1;
    if (threads > parts) threads = (int)parts;
    float *coef = allocate(g.coefs * (size_t)(1 + parts) + (size_t)threads * 2 * GROUP * g.row);
    if (!coef) return 1;
    float *sums = coef + g.coefs, *work = sums + g.coefs * (size_t)parts;
    pack(&g, kernels->lanes, blocks, coef);
    memset(sums, 0, 4 * g.coefs * (size_t)parts);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++)
        for (int64_t p = parts * t / threads; p < parts * (t + 1) / threads; p++) {
            const int64_t from = p * part, end = from + part < count ? from + part : count;
            kernels->gradients(&g, coef, &as, &bs, out ? &outs : 0, want_ra, from, end, sums + g.coefs * (size_t)p, work + (size_t)t * 2 * GROUP * g.row);
        }
    for (int64_t p = 1; p < parts; p++)
        for (size_t i = 0; i < g.coefs; i++) sums[i] += sums[g.coefs * (size_t)p + i];
    unpack(&g, kernels->lanes, sums, grad);
    free(coef);
    return 0;
}
