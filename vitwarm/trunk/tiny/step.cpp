// Loss and gradients of a tiny decoder; see __init__.py for the idea. WIDTH and HEADS are given on the command line.
//
// Shapes: n positions, D channels, E channels of a head, F hidden units, V symbols. An array of vectors `x (n, D)` has
// LANES numbers in each element, one of each sequence of the group.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifndef LANES  // as many as the widest register holds: longer vectors would be spilled at every operation
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

namespace {

typedef float v __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
#define INLINE inline __attribute__((always_inline))

constexpr int D = WIDTH, H = HEADS, E = D / H, F = 4 * D;
constexpr float EPS = 1e-5f;  // of LayerNorm
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers: 4 x 4 sums fit beside what is multiplied
constexpr int ROWS = 4;
#else  // 16
constexpr int ROWS = 3;
#endif

INLINE v all(float a) { return v{} + a; }
INLINE v larger(v a, v b) { return a > b ? a : b; }  // b where one of them is NaN

// exp to 2 units in the last place (Cephes' polynomial), 0 up to x = -30 and exp(30) from x = 30 on: what is added to 1
// or divides it is smaller than its rounding there. Still smaller numbers would only breed subnormal ones, at which
// processors take a hundred times as long. NaN stays NaN.
INLINE v exponential(v x) {
  const float round = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
  x = larger(all(-30.f), x);
  x = all(30.f) < x ? all(30.f) : x;
  const vi vanishes = x <= all(-30.f);
  const v shifted = x * 1.44269504088896341f + round, n = shifted - round;
  const v r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  v p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
         1.6666665459e-1f) * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return (v)((vi)(p * (v)(((vi)shifted + 127) << 23)) & ~vanishes);
}

// A tensor of the model: its values, and where they are wanted its gradients: `sum` by lane, `grad` over all sequences.
struct Tensor {
  const float* value;
  float* grad;
  int64_t size;
  v* sum;
};

struct Linear {
  Tensor weight, bias;
  float* transposed;
};

struct Block {
  Tensor gain1, shift1;
  Linear qkv, proj;
  Tensor gain2, shift2;
  Linear fc1, fc2;
};

// Linear maps: tiles of P positions x Q outputs, ROWS x 4 where they fit, stay in registers.

template <int P, int Q>
INLINE void tile(const float* weight, const float* bias, int O, int C, const v* x, v* y) {
  v sum[P][Q];
  for (int q = 0; q < Q; q++)
    for (int p = 0; p < P; p++) sum[p][q] = all(bias ? bias[q] : 0.f);
  for (int c = 0; c < C; c++)
    for (int q = 0; q < Q; q++) {
      const float w = weight[q * C + c];
      for (int p = 0; p < P; p++) sum[p][q] += w * x[p * C + c];
    }
  for (int q = 0; q < Q; q++)
    for (int p = 0; p < P; p++) y[p * O + q] = sum[p][q];
}

template <int P>
INLINE void tiles(const float* weight, const float* bias, int O, int C, const v* x, v* y) {
  int o = 0;
  for (; o + 4 <= O; o += 4) tile<P, 4>(weight + o * C, bias ? bias + o : nullptr, O, C, x, y + o);
  for (; o < O; o++) tile<P, 1>(weight + o * C, bias ? bias + o : nullptr, O, C, x, y + o);
}

// y (n, O) = x (n, C) weight^T + bias, weight (O, C)
INLINE void linear(const float* weight, const float* bias, int O, int C, const v* x, v* y, int n) {
  int t = 0;
  for (; t + ROWS <= n; t += ROWS) tiles<ROWS>(weight, bias, O, C, x + t * C, y + t * O);
  for (; t < n; t++) tiles<1>(weight, bias, O, C, x + t * C, y + t * O);
}

template <int P, int Q>
INLINE void outer(v* sum, int O, int C, const v* dy, const v* x, int n) {
  v own[P][Q];
  for (int p = 0; p < P; p++)
    for (int q = 0; q < Q; q++) own[p][q] = sum[p * C + q];
  for (int t = 0; t < n; t++)
    for (int p = 0; p < P; p++)
      for (int q = 0; q < Q; q++) own[p][q] += dy[t * O + p] * x[t * C + q];
  for (int p = 0; p < P; p++)
    for (int q = 0; q < Q; q++) sum[p * C + q] = own[p][q];
}

template <int P>
INLINE void outers(v* sum, int O, int C, const v* dy, const v* x, int n) {
  int c = 0;
  for (; c + 4 <= C; c += 4) outer<P, 4>(sum + c, O, C, dy, x + c, n);
  for (; c < C; c++) outer<P, 1>(sum + c, O, C, dy, x + c, n);
}

// Gradients of rows [first, first + O) of a linear map: dy (n, O), x (n, C).
INLINE void linear_grad(const Tensor& weight, const Tensor& bias, int first, int O, int C, const v* dy, const v* x,
                        int n) {
  if (weight.sum) {
    v* sum = weight.sum + int64_t(first) * C;
    int o = 0;
    for (; o + ROWS <= O; o += ROWS) outers<ROWS>(sum + o * C, O, C, dy + o, x, n);
    for (; o < O; o++) outers<1>(sum + o * C, O, C, dy + o, x, n);
  }
  if (bias.sum)
    for (int o = 0; o < O; o++) {
      v own = {};
      for (int t = 0; t < n; t++) own += dy[t * O + o];
      bias.sum[first + o] += own;
    }
}

// LayerNorm: y = normal * gain + shift, with `normal` and the inverse deviation kept for the way back.

void norm(const Tensor& gain, const Tensor& shift, const v* x, v* normal, v* inverse, v* y, int n) {
  for (int t = 0; t < n; t++, x += D, y += D, normal += D) {
    v mean = {}, square = {};
    for (int c = 0; c < D; c++) mean += x[c];
    mean *= 1.f / D;
    for (int c = 0; c < D; c++) square += (x[c] - mean) * (x[c] - mean);
    v deviation = square * (1.f / D) + EPS;
    for (int r = 0; r < LANES; r++) deviation[r] = std::sqrt(deviation[r]);
    const v scale = inverse[t] = 1.f / deviation;
    for (int c = 0; c < D; c++) {
      normal[c] = (x[c] - mean) * scale;
      y[c] = normal[c] * gain.value[c] + shift.value[c];
    }
  }
}

// Adds to dx what comes through the norm.
void norm_grad(const Tensor& gain, const Tensor& shift, const v* normal, const v* inverse, const v* dy, v* dx, int n) {
  v of_gain[D] = {}, of_shift[D] = {};
  for (int t = 0; t < n; t++, dy += D, dx += D, normal += D) {
    v mean = {}, product = {};
    for (int c = 0; c < D; c++) {
      of_gain[c] += dy[c] * normal[c];
      of_shift[c] += dy[c];
      mean += dy[c] * gain.value[c];
      product += dy[c] * gain.value[c] * normal[c];
    }
    mean *= 1.f / D;
    product *= 1.f / D;
    for (int c = 0; c < D; c++) dx[c] += (dy[c] * gain.value[c] - mean - normal[c] * product) * inverse[t];
  }
  for (int c = 0; c < D; c++) {
    if (gain.sum) gain.sum[c] += of_gain[c];
    if (shift.sum) shift.sum[c] += of_shift[c];
  }
}

// Dropout: whether an element is kept is a hash of the seed, the place in the model, the sequence and the element. So
// nothing is stored, and the same seed gives the same masks, however sequences are grouped.

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

struct Mask {
  vu before = {}, after = {};
  uint32_t below = 0;
  float scale = 1;

  INLINE v operator()(v x, uint32_t element) const {
    if (!below) return x;
    vu h = before ^ element;
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = (h ^ (h >> 15)) * 0x846CA68Bu + after;
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h ^= h >> 15;
    return (v)((vi)(x * scale) & (vi)(h >= below));
  }
  void operator()(v* x, const int* at, int n) const {  // (n, D), the rows of the positions `at`
    if (below)
      for (int t = 0; t < n; t++)
        for (int c = 0; c < D; c++) x[t * D + c] = (*this)(x[t * D + c], at[t] * D + c);
  }
};

struct Dropout {
  float rate;
  uint64_t seed;
  const int64_t* sequences;  // (LANES,) numbers in the batch

  Mask mask(int place) const {
    Mask m;
    m.below = uint32_t(rate * 4294967296.);
    m.scale = 1 / (1 - rate);
    for (int r = 0; m.below && r < LANES; r++) {
      const uint64_t key = mixed(mixed(seed ^ mixed(place)) ^ uint64_t(sequences[r]));
      m.before[r] = uint32_t(key);
      m.after[r] = uint32_t(key >> 32);
    }
    return m;
  }
};

// What a block's run leaves for the way back. Keys and values are of all n positions; all behind them of the m asked.
struct Run {
  v *normal1, *inverse1, *y1, *kv, *asked, *q, *largest, *share, *heads, *x, *normal2, *inverse2, *y2, *hidden, *slope;
  Mask attention, behind_attention, behind_mlp;
};

struct Places {
  const int* at;  // ascending positions
  int count;
};

INLINE uint32_t element(uint32_t i, uint32_t j, uint32_t h) { return (i * (i + 1) / 2 + j) * H + h; }

// Softmax attention of the asked positions, each over the positions up to its own.
void attend(Run& run, const Places& m, v* scores) {
  const float scale = 1 / std::sqrt(float(E));
  for (int t = 0; t < m.count; t++)
    for (int h = 0; h < H; h++) {
      const int i = m.at[t];
      const v* key = run.kv + h * E;
      v q[E], sum[E] = {}, largest = all(-INFINITY), total = {};
      for (int c = 0; c < E; c++) q[c] = run.q[t * D + h * E + c] * scale;
      for (int j = 0; j <= i; j++) {
        v score = {};
        for (int c = 0; c < E; c++) score += q[c] * key[j * 2 * D + c];
        scores[j] = score;
        largest = larger(largest, score);
      }
      for (int j = 0; j <= i; j++) {
        v p = exponential(scores[j] - largest);
        total += p;
        p = run.attention(p, element(i, j, h));
        for (int c = 0; c < E; c++) sum[c] += p * key[j * 2 * D + D + c];
      }
      run.largest[t * H + h] = largest;
      const v share = run.share[t * H + h] = 1.f / total;
      for (int c = 0; c < E; c++) run.heads[t * D + h * E + c] = sum[c] * share;
    }
}

// dheads (m, D) to dq (m, D), and added to dkv (n, 2 D).
void attend_grad(const Run& run, const Places& m, const v* dheads, v* dq, v* dkv) {
  const float scale = 1 / std::sqrt(float(E));
  for (int t = 0; t < m.count; t++)
    for (int h = 0; h < H; h++) {
      const int i = m.at[t], row = t * D + h * E;
      const v *key = run.kv + h * E, largest = run.largest[t * H + h], share = run.share[t * H + h];
      v* dkey = dkv + h * E;
      v q[E], out[E], of_q[E] = {}, mean = {};
      for (int c = 0; c < E; c++) {
        q[c] = run.q[row + c] * scale;
        out[c] = dheads[row + c];
        mean += out[c] * run.heads[row + c];
      }
      for (int j = 0; j <= i; j++, key += 2 * D, dkey += 2 * D) {
        v score = {}, dp = {};
        for (int c = 0; c < E; c++) {
          score += q[c] * key[c];
          dp += out[c] * key[D + c];
        }
        const v p = exponential(score - largest) * share, kept = run.attention(p, element(i, j, h));
        const v dscore = p * (run.attention(dp, element(i, j, h)) - mean);
        for (int c = 0; c < E; c++) {
          of_q[c] += dscore * key[c];
          dkey[c] += dscore * q[c];
          dkey[D + c] += kept * out[c];
        }
      }
      for (int c = 0; c < E; c++) dq[row + c] = of_q[c] * scale;
    }
}

void add_rows(const v* x, const Places& m, v* y) {  // x (m, D) into the rows of y (n, D)
  for (int t = 0; t < m.count; t++)
    for (int c = 0; c < D; c++) y[m.at[t] * D + c] += x[t * D + c];
}

// x (n, D) to out (m, D)
void forward(const Block& b, Run& run, const v* x, v* out, int n, const Places& m, v* scores) {
  norm(b.gain1, b.shift1, x, run.normal1, run.inverse1, run.y1, n);
  linear(b.qkv.weight.value + D * D, b.qkv.bias.value + D, 2 * D, D, run.y1, run.kv, n);
  for (int t = 0; t < m.count; t++) memcpy(run.asked + t * D, run.y1 + m.at[t] * D, D * sizeof(v));
  linear(b.qkv.weight.value, b.qkv.bias.value, D, D, run.asked, run.q, m.count);
  attend(run, m, scores);
  linear(b.proj.weight.value, b.proj.bias.value, D, D, run.heads, run.x, m.count);
  run.behind_attention(run.x, m.at, m.count);
  for (int t = 0; t < m.count; t++)
    for (int c = 0; c < D; c++) run.x[t * D + c] += x[m.at[t] * D + c];
  norm(b.gain2, b.shift2, run.x, run.normal2, run.inverse2, run.y2, m.count);
  linear(b.fc1.weight.value, b.fc1.bias.value, F, D, run.y2, run.hidden, m.count);
  for (int i = 0; i < m.count * F; i++) {  // GELU by tanh is x * sigmoid(2 u)
    const float a = 1.5957691216057308f, k = 0.044715f;
    const v x = run.hidden[i], s = 1.f / (1.f + exponential(-a * x * (1.f + k * x * x)));
    run.hidden[i] = x * s;
    run.slope[i] = s + x * s * (1.f - s) * (a + 3 * a * k * x * x);
  }
  linear(b.fc2.weight.value, b.fc2.bias.value, D, F, run.hidden, out, m.count);
  run.behind_mlp(out, m.at, m.count);
  for (int i = 0; i < m.count * D; i++) out[i] += run.x[i];
}

// Scratch of the way back, (N, F) each.
struct Scratch {
  v *a, *b, *c, *d;
};

// Turns dx, the gradient of the block's output (m, D), into that of its input (n, D).
void backward(const Block& b, const Run& run, v* dx, int n, const Places& m, const Scratch& s) {
  memcpy(s.a, dx, m.count * D * sizeof(v));
  run.behind_mlp(s.a, m.at, m.count);
  linear_grad(b.fc2.weight, b.fc2.bias, 0, D, F, s.a, run.hidden, m.count);
  linear(b.fc2.transposed, nullptr, F, D, s.a, s.b, m.count);
  for (int i = 0; i < m.count * F; i++) s.b[i] *= run.slope[i];
  linear_grad(b.fc1.weight, b.fc1.bias, 0, F, D, s.b, run.y2, m.count);
  linear(b.fc1.transposed, nullptr, D, F, s.b, s.a, m.count);
  norm_grad(b.gain2, b.shift2, run.normal2, run.inverse2, s.a, dx, m.count);

  memcpy(s.a, dx, m.count * D * sizeof(v));
  run.behind_attention(s.a, m.at, m.count);
  linear_grad(b.proj.weight, b.proj.bias, 0, D, D, s.a, run.heads, m.count);
  linear(b.proj.transposed, nullptr, D, D, s.a, s.b, m.count);
  memset(s.c, 0, n * 2 * D * sizeof(v));
  attend_grad(run, m, s.b, s.a, s.c);
  linear_grad(b.qkv.weight, b.qkv.bias, 0, D, D, s.a, run.asked, m.count);
  linear_grad(b.qkv.weight, b.qkv.bias, D, 2 * D, D, s.c, run.y1, n);
  linear(b.qkv.transposed, nullptr, D, D, s.a, s.b, m.count);
  linear(b.qkv.transposed + D * D, nullptr, D, 2 * D, s.c, s.d, n);
  add_rows(s.b, m, s.d);
  memcpy(s.a, dx, m.count * D * sizeof(v));  // the residual stream
  memset(dx, 0, n * D * sizeof(v));
  add_rows(s.a, m, dx);
  norm_grad(b.gain1, b.shift1, run.normal1, run.inverse1, s.d, dx, n);
}

void transpose(const float* weight, int O, int C, float* to) {
  for (int o = 0; o < O; o++)
    for (int c = 0; c < C; c++) to[c * O + o] = weight[o * C + c];
}

// Memory in a row. Without a start it only counts.
struct Memory {
  char* at;
  size_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* taken = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return taken;
  }
};

struct Pool {  // kept from call to call
  char* memory = nullptr;
  size_t size = 0;
  char* of(size_t wanted) {
    if (wanted > size) {
      free(memory);
      memory = static_cast<char*>(aligned_alloc(64, size = wanted));
    }
    return memory;
  }
  ~Pool() { free(memory); }
};

struct Sums {
  double loss, correct;
};

struct Model {
  int V;
  Tensor token, position, gain, shift, head;
  std::vector<Block> blocks;
  float* head_transposed;

  // Tensors in the order of the module's own, the head last.
  Model(int V, int depth, const float* const* values, float* const* grads, const int64_t* sizes)
      : V(V), blocks(depth) {
    int i = 0;
    const auto next = [&] {
      const Tensor t = {values[i], grads ? grads[i] : nullptr, sizes[i], nullptr};
      i++;
      return t;
    };
    token = next(), position = next();
    for (Block& b : blocks) {
      b.gain1 = next(), b.shift1 = next();
      for (Linear* l : {&b.qkv, &b.proj}) l->weight = next(), l->bias = next();
      b.gain2 = next(), b.shift2 = next();
      for (Linear* l : {&b.fc1, &b.fc2}) l->weight = next(), l->bias = next();
    }
    gain = next(), shift = next(), head = next();
  }

  std::vector<Tensor*> tensors(Block& b) {
    return {&b.gain1, &b.shift1, &b.qkv.weight, &b.qkv.bias, &b.proj.weight, &b.proj.bias,
            &b.gain2, &b.shift2, &b.fc1.weight, &b.fc1.bias, &b.fc2.weight,  &b.fc2.bias};
  }

  std::vector<Tensor*> summed() {  // by lane; gradients of the token table are scattered instead
    std::vector<Tensor*> found = {&position, &gain, &shift, &head};
    for (Block& b : blocks)
      for (Tensor* t : tensors(b)) found.push_back(t);
    return found;
  }

  void layout(Memory& memory) {
    for (Tensor* t : summed()) t->sum = t->grad ? memory.take<v>(t->size) : nullptr;
    for (Block& b : blocks) {
      b.qkv.transposed = memory.take<float>(3 * D * D);
      b.proj.transposed = memory.take<float>(D * D);
      b.fc1.transposed = memory.take<float>(D * F);
      b.fc2.transposed = memory.take<float>(D * F);
    }
    head_transposed = memory.take<float>(int64_t(V) * D);
  }

  void start() {
    for (Tensor* t : summed())
      if (t->sum) memset(t->sum, 0, t->size * sizeof(v));
    for (Block& b : blocks) {
      for (int part = 0; part < 2; part++)  // the query's rows apart from the others
        transpose(b.qkv.weight.value + part * D * D, part ? 2 * D : D, D, b.qkv.transposed + part * D * D);
      transpose(b.proj.weight.value, D, D, b.proj.transposed);
      transpose(b.fc1.weight.value, F, D, b.fc1.transposed);
      transpose(b.fc2.weight.value, D, F, b.fc2.transposed);
    }
    transpose(head.value, V, D, head_transposed);
  }

  void finish() {
    for (Tensor* t : summed())
      for (int64_t i = 0; t->sum && i < t->size; i++) {
        v sum = t->sum[i];
        for (int half = LANES / 2; half; half /= 2)
          for (int r = 0; r < half; r++) sum[r] += sum[r + half];
        t->grad[i] += sum[0];
      }
  }
};

// Cross-entropy of four positions at a time.
struct Head {
  v *normal, *inverse, *y, *logits, *dy;  // (N, D), (N,), (N, D), (4, V), (N, D)

  // x (m, D); targets and weights (m, LANES). dx (m, D) is written where there is one.
  void run(const Model& model, const v* x, int m, const int64_t* targets, const float* weights, v* dx, Sums& sums) {
    const int V = model.V;
    norm(model.gain, model.shift, x, normal, inverse, y, m);
    for (int first = 0; first < m; first += 4) {
      const int count = m - first < 4 ? m - first : 4;
      linear(model.head.value, nullptr, V, D, y + first * D, logits, count);
      for (int t = 0; t < count; t++) {
        const int64_t* target = targets + (first + t) * LANES;
        const float* weight = weights + (first + t) * LANES;
        v* p = logits + t * V;
        v largest = p[0], total = {}, of_target, share;
        vi best = {};
        for (int o = 1; o < V; o++) {
          const vi more = p[o] > largest;
          best = more ? vi{} + o : best;
          largest = more ? p[o] : largest;
        }
        for (int r = 0; r < LANES; r++) of_target[r] = p[target[r]][r];
        for (int o = 0; o < V; o++) total += p[o] = exponential(p[o] - largest);
        for (int r = 0; r < LANES; r++) {
          share[r] = weight[r] / total[r];
          if (weight[r] == 0) continue;
          sums.loss += weight[r] * (std::log(double(total[r])) + largest[r] - of_target[r]);
          sums.correct += weight[r] * (best[r] == target[r]);
        }
        for (int o = 0; o < V; o++) p[o] *= share;
        for (int r = 0; r < LANES; r++) p[target[r]][r] -= weight[r];
      }
      if (!dx) continue;
      linear_grad(model.head, Tensor{}, 0, V, D, logits, y + first * D, count);
      linear(model.head_transposed, nullptr, D, V, logits, dy + first * D, count);
    }
    if (!dx) return;
    memset(dx, 0, m * D * sizeof(v));
    norm_grad(model.gain, model.shift, normal, inverse, dy, dx, m);
  }
};

thread_local Pool pool;

}  // namespace

// Summed cross-entropy of B sequences, how many predictions were right, and gradients of the sum.
//
//   order (runs,)            the block of each run
//   tokens (B, N)            ids
//   targets, weights (B, M)  of the predictions; those of weight 0 may have any target
//   places (B, M)            where they are made, each at most once; null stands for 0, 1, ..., M - 1
//   values, grads, sizes     of the tensors; a null gradient is not wanted, null for all computes none
//   sums (2,)                loss and right predictions, each times its weight
//
// Returns 1 where an id is not one of the V symbols or a place not one of the N, else 0.
extern "C" int tiny_decoder(int V, int depth, int runs, const int* order, int64_t B, int N, int M,
                            const int64_t* tokens, const int64_t* targets, const float* weights, const int64_t* places,
                            const float* const* values, float* const* grads, const int64_t* sizes, float rate,
                            uint64_t seed, double* sums) {
  Model model(V, depth, values, grads, sizes);
  const auto place = [&](int64_t b, int i) { return places ? places[b * M + i] : int64_t(i); };

  // Tokens behind the last prediction change nothing. Sequences of like length are computed together.
  std::vector<int> lengths(B);
  std::vector<int64_t> starts(N + 2), sorted(B);
  for (int64_t b = 0; b < B; b++) {
    for (int i = 0; i < M; i++)
      if (weights[b * M + i] != 0) {
        if (place(b, i) < 0 || place(b, i) >= N || targets[b * M + i] < 0 || targets[b * M + i] >= V) return 1;
        if (place(b, i) >= lengths[b]) lengths[b] = place(b, i) + 1;
      }
    for (int t = 0; t < N; t++)
      if (tokens[b * N + t] < 0 || tokens[b * N + t] >= V) return 1;
    starts[lengths[b] + 1]++;
  }
  for (int n = 0; n <= N; n++) starts[n + 1] += starts[n];
  const int64_t without = starts[1];  // predictions
  for (int64_t b = 0; b < B; b++) sorted[starts[lengths[b]]++] = b;

  std::vector<Run> run(runs);
  std::vector<v*> x(runs + 1);  // what goes into each run, and comes out of the last
  Head head;
  Scratch scratch;
  v *dx, *scores;
  float* group_weights;
  int64_t* group_targets;
  const auto layout = [&](char* start) {
    Memory memory{start};
    model.layout(memory);
    for (v*& a : x) a = memory.take<v>(N * D);
    for (Run& r : run) {
      for (v** a : {&r.normal1, &r.y1, &r.asked, &r.q, &r.heads, &r.x, &r.normal2, &r.y2}) *a = memory.take<v>(N * D);
      for (v** a : {&r.inverse1, &r.inverse2}) *a = memory.take<v>(N);
      for (v** a : {&r.largest, &r.share}) *a = memory.take<v>(N * H);
      for (v** a : {&r.hidden, &r.slope}) *a = memory.take<v>(N * F);
      r.kv = memory.take<v>(N * 2 * D);
    }
    for (v** a : {&head.normal, &head.y, &head.dy, &dx}) *a = memory.take<v>(N * D);
    for (v** a : {&head.inverse, &scores}) *a = memory.take<v>(N);
    head.logits = memory.take<v>(4 * int64_t(V));
    for (v** a : {&scratch.a, &scratch.b, &scratch.c, &scratch.d}) *a = memory.take<v>(N * F);
    group_weights = memory.take<float>(N * LANES);
    group_targets = memory.take<int64_t>(N * LANES);
    return memory.used;
  };
  layout(pool.of(layout(nullptr)));
  model.start();

  std::vector<int> every(N), asked(N), rank(N);
  for (int t = 0; t < N; t++) every[t] = t;
  Sums total = {};
  for (int64_t first = without; first < B; first += LANES) {
    const int count = B - first < LANES ? B - first : LANES;
    const int64_t* rows = &sorted[first];
    const int n = lengths[rows[count - 1]];
    int64_t sequences[LANES] = {};
    memcpy(sequences, rows, count * sizeof(int64_t));

    // The places that any of the sequences asks.
    std::fill(rank.begin(), rank.end(), -1);
    for (int r = 0; r < count; r++)
      for (int i = 0; i < M; i++)
        if (weights[rows[r] * M + i] != 0) rank[place(rows[r], i)] = 0;
    int m = 0;
    for (int t = 0; t < n; t++)
      if (rank[t] == 0) asked[rank[t] = m++] = t;
    memset(group_weights, 0, m * LANES * sizeof(float));
    memset(group_targets, 0, m * LANES * sizeof(int64_t));
    for (int r = 0; r < count; r++)
      for (int i = 0; i < M; i++)
        if (const float weight = weights[rows[r] * M + i]) {
          const int at = rank[place(rows[r], i)] * LANES + r;
          group_weights[at] = weight;
          group_targets[at] = targets[rows[r] * M + i];
        }

    for (int t = 0; t < n; t++)
      for (int r = 0; r < LANES; r++) {
        const int64_t id = r < count ? tokens[rows[r] * N + t] : 0;
        for (int c = 0; c < D; c++) x[0][t * D + c][r] = model.token.value[id * D + c] + model.position.value[t * D + c];
      }
    const Dropout dropout = {rate, seed, sequences};
    const Mask embedded = dropout.mask(0);
    embedded(x[0], every.data(), n);
    const auto places_of = [&](int i) {
      return i == runs - 1 ? Places{asked.data(), m} : Places{every.data(), n};
    };
    for (int i = 0; i < runs; i++) {
      run[i].attention = dropout.mask(3 * i + 1);
      run[i].behind_attention = dropout.mask(3 * i + 2);
      run[i].behind_mlp = dropout.mask(3 * i + 3);
      forward(model.blocks[order[i]], run[i], x[i], x[i + 1], n, places_of(i), scores);
    }
    head.run(model, x[runs], m, group_targets, group_weights, grads ? dx : nullptr, total);
    if (!grads) continue;
    for (int i = runs - 1; i >= 0; i--) backward(model.blocks[order[i]], run[i], dx, n, places_of(i), scratch);
    embedded(dx, every.data(), n);
    for (int t = 0; t < n && model.position.sum; t++)
      for (int c = 0; c < D; c++) model.position.sum[t * D + c] += dx[t * D + c];
    for (int t = 0; t < n && model.token.grad; t++)
      for (int r = 0; r < count; r++) {
        float* grad = model.token.grad + tokens[rows[r] * N + t] * D;
        for (int c = 0; c < D; c++) grad[c] += dx[t * D + c][r];
      }
  }
  if (grads) model.finish();
  sums[0] = total.loss;
  sums[1] = total.correct;
  return 0;
}
