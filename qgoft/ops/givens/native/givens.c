/* Products of Givens rotations on rows, without PyTorch's headers: called through ctypes (__init__.py), which checks all arguments.

   Rows are float32 or bfloat16, the arithmetic is float32. There is no global state. Rows are divided among OpenMP threads; sums over rows
   are formed over fixed parts of them, so that results do not depend on the number of threads. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
} Rows;

/* GROUP rows: read from `in` and written to `out`; `work` is for their levels, `next` are the rows of the next group. */
typedef struct {
    const char *in[GROUP], *next[GROUP];
    char *out[GROUP];
    float *work[GROUP];
    int is_half;
} Group;

/* What a vector of pairs is read from: a row of float32 or bfloat16, or the work of a level, paired as neighbours or in halves of vectors. */
enum { FLOATS, BFLOATS, INNER, HALVES };

/* apply: y = R x, or R^T x. gradients: of <b, R a>, added to the sums; with want_ra R a, with want_rtb R^T b is written as well. */
typedef struct {
    int lanes;
    const unsigned char *lane; /* [3][lanes]: see rows.inc */
    void (*apply)(const Geometry *, const Group *, int transpose, const float *coef);
    void (*gradients)(const Geometry *, const Group *a, const Group *b, int want_ra, int want_rtb, const float *coef, float *sums);
} Kernels;

#define INLINE static inline __attribute__((always_inline))

/* Choose LANES of the values of two vectors, numbered through. */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (N(bits)){__VA_ARGS__})
#endif

/* Compile what follows for an instruction set that the processor may lack. A test defines these to nothing. */
#define PRAGMA(text) _Pragma(#text)
#ifdef TARGET
#elif defined(__clang__)
#define TARGET(name) PRAGMA(clang attribute push(__attribute__((target(name))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define TARGET(name) PRAGMA(GCC push_options) PRAGMA(GCC target(name))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

#ifdef __x86_64__
TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx2")
#define SET avx512
#define LANES 16
#include "rows.inc"
END_TARGET
TARGET("avx2")
#define SET avx2
#define LANES 8
#include "rows.inc"
END_TARGET
#endif
#define SET base
#define LANES 4
#include "rows.inc"

/* isa: 0 the baseline of the processor family, 1 AVX2, 2 AVX-512; more than the processor has counts as the best it has. */
static const Kernels *choose(int isa) {
#ifdef __x86_64__
    if (isa >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return &kernels_avx512;
    if (isa >= 1 && __builtin_cpu_supports("avx2")) return &kernels_avx2;
#endif
    (void)isa;
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

/* Offset of the first entry of pair p of level r in the packed blocks. The other entries follow at distances of `lanes`. */
INLINE size_t place(const Geometry *g, const Kernels *kernels, int r, int p) {
    const int lanes = kernels->lanes;
    return g->coef[r] + (size_t)(p / lanes * 4) * lanes + kernels->lane[r % 3 * lanes + p % lanes];
}

/* Copy blocks [d-1, 2, 2] to vectors of their entries, or the other way. Pairs beyond d are identities. */
static void pack(const Geometry *g, const Kernels *kernels, const float *blocks, float *coef) {
    for (int r = 0; r < g->levels; blocks += 4 * (g->width[r] / 2), r++)
        for (int p = 0; p < g->even_size[r] / 2; p++)
            for (int entry = 0; entry < 4; entry++)
                coef[place(g, kernels, r, p) + entry * kernels->lanes] = p < g->width[r] / 2 ? blocks[4 * p + entry] : (entry == 0 || entry == 3);
}

static void unpack(const Geometry *g, const Kernels *kernels, const float *coef, float *blocks) {
    for (int r = 0; r < g->levels; blocks += 4 * (g->width[r] / 2), r++)
        for (int p = 0; p < g->width[r] / 2; p++)
            for (int entry = 0; entry < 4; entry++) blocks[4 * p + entry] = coef[place(g, kernels, r, p) + entry * kernels->lanes];
}

static float *allocate(size_t floats) { return aligned_alloc(64, (4 * floats + 127) / 64 * 64); }

/* The work of a thread: the levels of two groups, and a row of zeros and one to ignore in place of rows that a group lacks. */
static size_t size_of_work(const Geometry *g) { return 2 * GROUP * g->row + 2 * (size_t)g->even_size[0]; }

static float *prepare_work(const Geometry *g, float *work) {
    memset(work + 2 * GROUP * g->row, 0, 4 * (size_t)g->even_size[0]);
    return work;
}

static Group group_of(const Geometry *g, const Rows *in, const Rows *out, int is_half, int64_t row, int64_t end, float *work, int second) {
    char *zeros = (char *)(work + 2 * GROUP * g->row), *ignored = (char *)(work + 2 * GROUP * g->row + g->even_size[0]);
    Group rows = {.is_half = is_half};
    for (int k = 0; k < GROUP; k++) {
        const int present = row + k < end;
        rows.in[k] = present ? in->first + (row + k) * in->stride : zeros;
        /* Rows longer than a page are prefetched by the processor itself. */
        rows.next[k] = in->stride <= 4096 && row + k + GROUP < end ? rows.in[k] + GROUP * in->stride : zeros;
        rows.out[k] = present && out->first ? out->first + (row + k) * out->stride : ignored;
        rows.work[k] = work + (second * GROUP + k) * g->row;
    }
    return rows;
}

#define EXPORT __attribute__((visibility("default")))

/* The hash of the sources that this library was compiled from. */
#ifndef GIVENS_SOURCE
#define GIVENS_SOURCE ""
#endif
EXPORT const char *givens_source(void) { return GIVENS_SOURCE; }

EXPORT int givens_lanes(int isa) { return choose(isa)->lanes; }

/* y = R x, or R^T x with `transpose`, on `count` rows of d values; y may be x. Strides are in values. Returns 0, or 1 if memory is short. */
EXPORT int givens_apply(int isa, int is_half, int d, const float *blocks, void *x, int64_t x_stride, void *y, int64_t y_stride, int64_t count, int transpose, int threads) {
    const Kernels *kernels = choose(isa);
    const int size = is_half ? 2 : 4;
    const Rows in = {x, x_stride * size}, out = {y, y_stride * size};
    Geometry g;
    describe(&g, d, kernels->lanes);
    const int64_t groups = (count + GROUP - 1) / GROUP;
    if (threads > groups) threads = groups > 0 ? (int)groups : 1;
    float *coef = allocate(g.coefs + (size_t)threads * size_of_work(&g));
    if (!coef) return 1;
    pack(&g, kernels, blocks, coef);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        float *work = prepare_work(&g, coef + g.coefs + (size_t)t * size_of_work(&g));
        for (int64_t i = groups * t / threads; i < groups * (t + 1) / threads; i++) {
            const Group rows = group_of(&g, &in, &out, is_half, i * GROUP, count, work, 0);
            kernels->apply(&g, &rows, transpose, coef);
        }
    }
    free(coef);
    return 0;
}

/* Gradients of <b, R a> on `count` rows: of the blocks into grad [d-1, 2, 2]; into `out`, unless it is null, R a if want_ra, otherwise R^T b.
   `out` may be the rows that it replaces (a or b, respectively). */
EXPORT int givens_gradients(int isa, int is_half, int d, const float *blocks, void *a, int64_t a_stride, void *b, int64_t b_stride, void *out, int64_t out_stride, int64_t count, int want_ra, float *grad, int threads) {
    const Kernels *kernels = choose(isa);
    const int size = is_half ? 2 : 4;
    const Rows as = {a, a_stride * size}, bs = {b, b_stride * size}, outs = {out, out_stride * size};
    Geometry g;
    describe(&g, d, kernels->lanes);
    int64_t part = (count + MAX_PARTS - 1) / MAX_PARTS;
    part = part < PART ? PART : (part + GROUP - 1) / GROUP * GROUP;
    const int64_t parts = count > 0 ? (count + part - 1) / part : 1;
    if (threads > parts) threads = (int)parts;
    float *coef = allocate(g.coefs * (size_t)(1 + parts) + (size_t)threads * size_of_work(&g));
    if (!coef) return 1;
    float *sums = coef + g.coefs, *works = sums + g.coefs * (size_t)parts;
    pack(&g, kernels, blocks, coef);
    memset(sums, 0, 4 * g.coefs * (size_t)parts);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        float *work = prepare_work(&g, works + (size_t)t * size_of_work(&g));
        for (int64_t p = parts * t / threads; p < parts * (t + 1) / threads; p++) {
            const int64_t end = (p + 1) * part < count ? (p + 1) * part : count;
            for (int64_t row = p * part; row < end; row += GROUP) {
                const Group group_a = group_of(&g, &as, &outs, is_half, row, end, work, 1), group_b = group_of(&g, &bs, &outs, is_half, row, end, work, 0);
                kernels->gradients(&g, &group_a, &group_b, out && want_ra, out && !want_ra, coef, sums + g.coefs * (size_t)p);
            }
        }
    }
    for (int64_t p = 1; p < parts; p++)
        for (size_t i = 0; i < g.coefs; i++) sums[i] += sums[g.coefs * (size_t)p + i];
    unpack(&g, kernels, sums, grad);
    free(coef);
    return 0;
}
