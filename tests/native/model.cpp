#include "model.h"

#include <algorithm>

#include "builder.h"
#include "steps.h"

namespace {

constexpr size_t kMostGrowing = 8;  // sequences of one cache: each takes many steps

// Lengths around what kernels take at once, mostly short.
size_t random_length(Random& random, size_t longest) {
    const size_t most = random.one_in(12) ? longest : random.one_in(3) ? 140 : 34;
    return random.between(1, std::min(most, longest));
}

void add_sequence(Random& random, Model& model, size_t tokens) {
    for (; tokens > 0; --tokens) {
        model.pool.ids.push_back(int32_t(random.between(0, model.vocabulary - 1)));
        if (model.types) model.pool.types.push_back(int32_t(random.between(0, model.types - 1)));
    }
    model.pool.starts.push_back(int64_t(model.pool.ids.size()));
}

// The output's rows of these sequences of the pool, as one batch.
std::vector<float> compute(Random& random, const Model& model, const std::vector<size_t>& chosen, int threads) {
    const Sequences& pool = model.pool;
    Sequences batch;
    size_t values = 0;
    for (size_t s : chosen) {
        const size_t begin = pool.starts[s], end = pool.starts[s + 1];
        batch.ids.insert(batch.ids.end(), pool.ids.begin() + begin, pool.ids.begin() + end);
        if (model.types) batch.types.insert(batch.types.end(), pool.types.begin() + begin, pool.types.begin() + end);
        batch.starts.push_back(batch.starts.back() + int64_t(end - begin));
        values += (model.per == Per::kSequence ? 1 : end - begin) * model.width;
    }
    const Exact out = room<float>(random, values);
    std::vector<double> seconds(model.program->op_count());
    if (!model.program->run({.ids = batch.ids.data(),
                             .types = model.types ? batch.types.data() : nullptr,
                             .starts = batch.starts.data(),
                             .sequences = chosen.size()},
                            threads, out.at<float>(), random.one_in(8) ? seconds.data() : nullptr)) {
        fail("run", "out of memory");
    }
    return {out.at<float>(), out.at<float>(values)};
}

void check_batch(Random& random, const Model& model, const std::vector<size_t>& chosen, int threads) {
    const std::vector<float> got = compute(random, model, chosen, threads);
    const float* row = got.data();
    for (size_t s : chosen) {
        const std::vector<float>& alone = model.alone[s];
        if (memcmp(row, alone.data(), alone.size() * sizeof(float))) fail("run", "a result depends on its batch");
        row += alone.size();
    }
}

}  // namespace

std::unique_ptr<Model> random_model(Random& random, Isa isa, size_t number) {
    const bool state = number % 3 == 2;
    std::unique_ptr<Model> model =
        state ? random_decoder(random, isa, number / 3) : random_encoder(random, isa, number / 3 * 2 + number % 3);
    for (size_t sequences = random.between(4, state ? 6 : 12); sequences > 0; --sequences) {
        add_sequence(random, *model, random_length(random, state ? 200 : model->longest));
    }
    if (state && random.one_in(3)) add_sequence(random, *model, random.between(kPart, model->longest));
    for (size_t s = 0; s + 1 < model->pool.starts.size(); ++s) {
        model->alone.push_back(state ? in_one_step(random, *model, s) : compute(random, *model, {s}, 1));
    }
    return model;
}

void Model::check(Random& random, size_t most, int most_threads, int callers) const {
    std::vector<size_t> chosen;
    if (cache_bytes) most = std::min(most, kMostGrowing);
    for (size_t i = random.between(1, most); i > 0; --i) chosen.push_back(random.between(0, alone.size() - 1));
    if (cache_bytes) {
        check_steps(random, *this, chosen, most_threads, callers);
    } else {
        check_batch(random, *this, chosen, int(random.between(1, most_threads)));
    }
}
