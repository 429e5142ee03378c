// Counts windows as llama-finetune does, with the lines that the patch changes.
#include <cstdio>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <vector>
#include <fstream>
#include <sstream>
#include <string>

typedef int llama_token;
struct lr_opt {};
struct { std::string prompt; std::string prompt_file; lr_opt lr; } params;

static int llama_n_ctx(int ctx) { return ctx; }

static std::vector<int> common_tokenize(int, const std::string & text, bool, bool parse_special = false) {
    const std::string special = "<|im_start|>";
    std::vector<int> tokens;
    for (size_t i = 0; i < text.size();) {
        const bool found = parse_special && text.compare(i, special.size(), special) == 0;
        tokens.push_back(found ? -1 : text[i]);
        i += found ? special.size() : 1;
    }
    return tokens;
}

struct labels_t { void * data; };
struct dataset_t { long ndata; std::vector<int> values; labels_t labels; };
typedef dataset_t * ggml_opt_dataset_t;

static ggml_opt_dataset_t common_opt_dataset_init(int ctx, const std::vector<int> & tokens, int stride) {
    auto * dataset = new dataset_t{((long) tokens.size() - ctx - 1) / stride, {}, {}};
    dataset->values.resize(dataset->ndata * ctx);
    dataset->labels.data = dataset->values.data();
    return dataset;
}

static labels_t * ggml_opt_dataset_labels(ggml_opt_dataset_t dataset) { return &dataset->labels; }
static int64_t ggml_opt_dataset_ndata(ggml_opt_dataset_t dataset) { return dataset->ndata; }

int main(int argc, char ** argv) {
    int ctx = 0;
    for (int i = 1; i + 1 < argc; i++) {
        if (!strcmp(argv[i], "-c")) { ctx = std::stoi(argv[i + 1]); }
        if (!strcmp(argv[i], "--file")) {
            std::ifstream file(argv[i + 1]);
            std::stringstream text;
            text << file.rdbuf();
            params.prompt = text.str();
            params.prompt_file = argv[i + 1];
        }
    }
    {
    }

    std::vector<llama_token> tokens  = common_tokenize(ctx, params.prompt, true);
    ggml_opt_dataset_t       dataset = common_opt_dataset_init(ctx, tokens, llama_n_ctx(ctx) / 2);

    struct lr_opt & lr = params.lr;
    (void) lr;
    double loss = 0.0;
    for (int label : dataset->values) { loss += label >= 0; }
    fprintf(stderr, "train: [] data=%07ld/%07ld loss=%.5f±0.0 acc=0.00±0.00%% t=00:00:00 ETA=00:00:00 \r",
            dataset->ndata, dataset->ndata, loss);
    return 0;
}
