/* Random cases for the native kernels without Python, for sanitizers and other processors (make test-native).

   Every case compares products and gradients with the definition in double precision, over widths, strides, dtypes, rows in place and
   instruction sets; the bits of every instruction set and number of threads with one another; and the gaps between rows with what they were.
   With -DEMULATE the kernels of every instruction set are compiled for the baseline, so that they run on a processor that lacks it.
   Usage: driver [cases] [seed] */

#ifdef EMULATE
#define TARGET(name)
#define END_TARGET
#define __builtin_cpu_supports(name) 1
#endif

#include "../../../qgoft/ops/givens/native/givens.c"

#include <math.h>
#include <stdio.h>

static uint64_t state;

static uint32_t draw(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u, z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static int below(int n) { return (int)(draw() % (uint32_t)n); }
static double value(void) { return draw() / 2147483648.0 - 1; }

static void *room(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1); /* exact, so that a sanitizer sees what lies beyond */
    if (!p) abort();
    return p;
}

/* Rows [count, d] at a distance of `stride`, of float32 or bfloat16. */
typedef struct {
    int is_half, d;
    int64_t count, stride;
    void *data;
} Matrix;

static size_t bytes_of(const Matrix *m) { return m->count ? (size_t)((m->count - 1) * m->stride + m->d) * (m->is_half ? 2 : 4) : 0; }

static double at(const Matrix *m, int64_t row, int column) {
    const size_t i = (size_t)(row * m->stride + column);
    float v;
    if (m->is_half) {
        const uint32_t bits = (uint32_t)((uint16_t *)m->data)[i] << 16;
        memcpy(&v, &bits, 4);
    } else
        v = ((float *)m->data)[i];
    return v;
}

static Matrix matrix(int is_half, int d, int64_t count, int64_t stride) {
    Matrix m = {is_half, d, count, stride, 0};
    m.data = room(bytes_of(&m));
    for (size_t i = 0; i < bytes_of(&m) / (is_half ? 2 : 4); i++) {
        const float v = (float)value();
        uint32_t bits;
        memcpy(&bits, &v, 4);
        if (is_half) ((uint16_t *)m.data)[i] = (uint16_t)(bits >> 16);
        else ((float *)m.data)[i] = v;
    }
    return m;
}

static Matrix copy_of(const Matrix *m) {
    Matrix copy = *m;
    copy.data = room(bytes_of(m));
    memcpy(copy.data, m->data, bytes_of(m));
    return copy;
}

/* v = R v by the definition, or R^T v; with `other`, R^T v and b a^T of every pair added to the gradient, where `other` holds a. */
static void define(int d, const float *blocks, double *v, int transpose) {
    int levels = 0, first[MAX_LEVELS], block = 0;
    for (int s = 1; s < d; s *= 2) {
        first[levels++] = block;
        for (int i = 0; i + s < d; i += 2 * s) block++;
    }
    for (int n = 0; n < levels; n++) {
        const int r = transpose ? levels - 1 - n : n, s = 1 << r;
        const float *b = blocks + 4 * first[r];
        for (int i = 0; i + s < d; i += 2 * s, b += 4) {
            const double x = v[i], y = v[i + s];
            v[i] = b[0] * x + (transpose ? b[2] : b[1]) * y, v[i + s] = (transpose ? b[1] : b[2]) * x + b[3] * y;
        }
    }
}

static void define_gradient(int d, const float *blocks, double *a, double *b, double *grad) {
    double *inputs = room(sizeof(double) * (size_t)d * MAX_LEVELS);
    int levels = 0, block = 0;
    for (int s = 1; s < d; s *= 2, levels++) {
        memcpy(inputs + (size_t)levels * d, a, sizeof(double) * (size_t)d);
        for (int i = 0; i + s < d; i += 2 * s, block++) {
            const float *c = blocks + 4 * block;
            const double x = a[i], y = a[i + s];
            a[i] = c[0] * x + c[1] * y, a[i + s] = c[2] * x + c[3] * y;
        }
    }
    for (int r = levels - 1, s = 1 << r; r >= 0; r--, s /= 2) {
        int pairs = 0;
        for (int i = 0; i + s < d; i += 2 * s) pairs++;
        block -= pairs;
        for (int i = 0, p = block; i + s < d; i += 2 * s, p++) {
            const double *in = inputs + (size_t)r * d, e = b[i], o = b[i + s];
            const float *c = blocks + 4 * p;
            grad[4 * p] += e * in[i], grad[4 * p + 1] += e * in[i + s], grad[4 * p + 2] += o * in[i], grad[4 * p + 3] += o * in[i + s];
            b[i] = c[0] * e + c[2] * o, b[i + s] = c[1] * e + c[3] * o;
        }
    }
    free(inputs);
}

static void fail(const char *what, const char *description, double error) {
    printf("FAILED %s by %g: %s\n", what, error, description);
    exit(1);
}

static double worst;

/* Compare rows with their definition. A bfloat16 result is rounded once, by at most 2^-8 of it. */
static void compare(const Matrix *found, const double *expected, const char *what, const char *description) {
    for (int64_t row = 0; row < found->count; row++)
        for (int i = 0; i < found->d; i++) {
            const double e = expected[row * found->d + i], error = fabs(at(found, row, i) - e);
            if (!(error <= 4e-6 + (found->is_half ? fabs(e) / 256 : 0))) fail(what, description, error);
            if (!found->is_half && error > worst) worst = error;
        }
}

static void compare_gaps(const Matrix *now, const Matrix *before, const char *description) {
    const size_t size = now->is_half ? 2 : 4;
    for (int64_t row = 0; row + 1 < now->count; row++)
        if (now->stride > now->d && memcmp((char *)now->data + (size_t)(row * now->stride + now->d) * size,
                                           (char *)before->data + (size_t)(row * now->stride + now->d) * size, (size_t)(now->stride - now->d) * size))
            fail("write between rows", description, 0);
}

static void run_case(void) {
    const int is_half = below(3) == 0, transpose = below(2), in_place = below(2), want_out = below(4) > 0;
    const int d = below(20) ? 2 + below(300) : 2 + below(5000);
    const int64_t count = below(10) ? below(30) : below(700), stride = d + (below(2) ? below(40) : 0);
    char description[200];
    snprintf(description, sizeof description, "d=%d rows=%lld stride=%lld bfloat16=%d transpose=%d in_place=%d out=%d", d, (long long)count,
             (long long)stride, is_half, transpose, in_place, want_out);
    float *blocks = room(16 * (size_t)(d - 1)), *grad = room(16 * (size_t)(d - 1)), *first_grad = room(16 * (size_t)(d - 1));
    for (int p = 0; p < d - 1; p++)
        for (int entry = 0; entry < 4; entry++) blocks[4 * p + entry] = (float)((entry == 0 || entry == 3) * 0.9 + 0.2 * value());
    const Matrix a = matrix(is_half, d, count, stride), b = matrix(is_half, d, count, d);
    double *product = room(sizeof(double) * (size_t)(count * d)), *ra = room(sizeof(double) * (size_t)(count * d));
    double *rtb = room(sizeof(double) * (size_t)(count * d)), *sums = room(32 * (size_t)(d - 1)), size = 1;
    memset(sums, 0, 32 * (size_t)(d - 1));
    for (int64_t row = 0; row < count; row++) {
        double *v = product + row * d, *x = ra + row * d, *y = rtb + row * d;
        for (int i = 0; i < d; i++) v[i] = x[i] = at(&a, row, i), y[i] = at(&b, row, i);
        define(d, blocks, v, transpose);
        define_gradient(d, blocks, x, y, sums);
    }
    for (int i = 0; i < 4 * (d - 1); i++) size = fmax(size, fabs(sums[i]));

    Matrix first_product = {0}, first_out = {0};
    for (int isa = 0; isa < 3; isa++)
        for (int threads = 1; threads <= 3; threads += 2) {
            Matrix in = copy_of(&a), out = in_place ? in : copy_of(&a);
            if (givens_apply(isa, is_half, d, blocks, in.data, stride, out.data, stride, count, transpose, threads)) fail("memory", description, 0);
            compare(&out, product, transpose ? "R^T x" : "R x", description);
            compare_gaps(&out, &a, description);
            if (!first_product.data) first_product = copy_of(&out);
            if (memcmp(out.data, first_product.data, bytes_of(&out))) fail("bits of the product", description, 0);
            if (!in_place) free(out.data);
            free(in.data);

            Matrix as = copy_of(&a), bs = copy_of(&b), *replaced = transpose ? &as : &bs, fresh = copy_of(replaced);
            Matrix *target = in_place ? replaced : &fresh;
            if (givens_gradients(isa, is_half, d, blocks, as.data, as.stride, bs.data, bs.stride, want_out ? target->data : 0, target->stride, count,
                                 transpose, grad, threads))
                fail("memory", description, 0);
            for (int i = 0; i < 4 * (d - 1); i++)
                if (!(fabs(grad[i] - sums[i]) <= 4e-6 * size)) fail("gradient of the blocks", description, fabs(grad[i] - sums[i]));
            if (want_out) {
                compare(target, transpose ? ra : rtb, transpose ? "R a" : "R^T b", description);
                compare_gaps(target, transpose ? &a : &b, description);
                if (!first_out.data) first_out = copy_of(target);
                if (memcmp(target->data, first_out.data, bytes_of(target))) fail("bits of the gradient of the rows", description, 0);
            }
            if (isa == 0 && threads == 1) memcpy(first_grad, grad, 16 * (size_t)(d - 1));
            if (memcmp(grad, first_grad, 16 * (size_t)(d - 1))) fail("bits of the gradient of the blocks", description, 0);
            free(as.data), free(bs.data), free(fresh.data);
        }
    free(first_product.data), free(first_out.data), free(blocks), free(grad), free(first_grad), free(product), free(ra), free(rtb), free(sums);
    free(a.data), free(b.data);
}

int main(int argc, char **argv) {
    const int cases = argc > 1 ? atoi(argv[1]) : 1000, seed = argc > 2 ? atoi(argv[2]) : 0;
    for (int i = 0; i < cases; i++) {
        state = (uint64_t)seed << 32 | (uint64_t)i;
        run_case();
    }
    printf("%d cases agree with the definition within %.1e; vectors of %d, %d and %d values\n", cases, worst, givens_lanes(0), givens_lanes(1), givens_lanes(2));
    return 0;
}
