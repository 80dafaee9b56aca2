// NVRTC and a C++ compiler behind it: what the real one takes is built for the processor too. Instead of PTX it gives
// the name of that library, which the double of the driver loads.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <string>

struct Program {
    void *real;
    std::string source, library;
};

static std::string variable(const char *name) { return std::getenv(name); }

template <typename Function> static Function real(const char *name) {
    static void *nvrtc = dlopen((variable("SATEEN_CUDA") + "/lib/libnvrtc.so.13").c_str(), RTLD_NOW);
    return (Function)dlsym(nvrtc, name);
}

// Of the instructions that are written in assembly, what they multiply.
static const char *factor_of(const std::string &instruction) {
    if (instruction.find(".s32.s8.s8.s32") != std::string::npos) return "SignedBytes";
    if (instruction.find(".f32.f16.f16.f32") != std::string::npos) return "Halves";
    if (instruction.find(".f32.bf16.bf16.f32") != std::string::npos) return "UpperHalves";
    fprintf(stderr, "the double has no %s\n", instruction.c_str());
    std::abort();
}

static void replace_assembly(std::string &source) {
    static const std::regex last_input("\"[rf]\"\\(reg_c_3\\)\\);");
    size_t at;
    while ((at = source.find("asm volatile(\"mma.sync")) != std::string::npos) {
        std::smatch last;
        std::string rest = source.substr(at);
        std::regex_search(rest, last, last_input);
        size_t length = last.position() + last.length();
        std::string factor = factor_of(rest.substr(0, length));
        source.replace(at, length,
                       "uint32 a[] = {reg_a_0, reg_a_1, reg_a_2, reg_a_3}, b[] = {reg_b_0, reg_b_1};"
                       "decltype(reg_d_0 + 0) c[] = {reg_c_0, reg_c_1, reg_c_2, reg_c_3}, d[4];"
                       "multiply_small_matrices<" + factor + ">(a, b, c, d);"
                       "reg_d_0 = d[0]; reg_d_1 = d[1]; reg_d_2 = d[2]; reg_d_3 = d[3];");
    }
}

// A function that any kernel can be called by.
static std::string entry(const std::string &source) {
    size_t start = source.find("extern \"C\" __global__ void");
    size_t open = source.find('(', source.find(')', start) + 1), close = source.find("\n)", open);
    std::smatch name;
    std::string head = source.substr(start, open - start);
    std::regex_search(head, name, std::regex("(\\w+)\\s*$"));
    std::string parameters = source.substr(open + 1, close - open - 1), call;
    static const std::regex qualifiers("__grid_constant__|__restrict__|const|\\n");
    std::string word;
    int n = 0;
    for (size_t from = 0; from < parameters.size(); n++) {
        size_t to = std::min(parameters.find(',', from), parameters.size());
        std::string type = std::regex_replace(parameters.substr(from, to - from), qualifiers, " ");
        type = type.substr(0, type.find_last_not_of(' ') + 1);
        type = type.substr(0, type.rfind(' '));
        call += (n > 0 ? ", *(" : "*(") + type + "*)p[" + std::to_string(n) + "]";
        from = to + 1;
    }
    return "\nalignas(64) uint8 dynamic_shared_mem[1 << 18];\n"
           "extern \"C\" void run_kernel(void **p, const unsigned *grid, const unsigned *block) {\n"
           "    run_grid([](void **p) { " + name[1].str() + "(" + call + "); }, p,\n"
           "             {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]});\n}\n";
}

extern "C" {
int nvrtcCreateProgram(Program **program, const char *source, const char *name, int n, const char *const *headers,
                       const char *const *names) {
    *program = new Program{nullptr, source, ""};
    auto create = real<int (*)(void **, const char *, const char *, int, const char *const *, const char *const *)>(
        "nvrtcCreateProgram");
    return create(&(*program)->real, source, name, n, headers, names);
}
int nvrtcCompileProgram(Program *program, int n_options, const char *const *options) {
    auto compile = real<int (*)(void *, int, const char *const *)>("nvrtcCompileProgram");
    if (int error = compile(program->real, n_options, options)) return error;
    if (std::getenv("SATEEN_COMPILE_ONLY")) return 0;
    static int n = 0;
    std::string folder = variable("SATEEN_DOUBLE"), base = folder + "/kernel-" + std::to_string(n++);
    std::string source = program->source;
    replace_assembly(source);
    std::ofstream(base + ".cpp") << source << entry(source);
    std::string command = "c++ -std=c++17 -O1 -w -fno-strict-aliasing -ffp-contract=off -mfma -shared -fPIC -I" + folder +
                          " -o " + base + ".so " + base + ".cpp";
    if (std::system(command.c_str()) != 0) {
        fprintf(stderr, "the double cannot build %s.cpp\n", base.c_str());
        std::abort();
    }
    program->library = base + ".so";
    return 0;
}
int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    return real<int (*)(void *, size_t *)>("nvrtcGetProgramLogSize")(program->real, size);
}
int nvrtcGetProgramLog(Program *program, char *log) {
    return real<int (*)(void *, char *)>("nvrtcGetProgramLog")(program->real, log);
}
int nvrtcGetPTXSize(Program *program, size_t *size) {
    *size = program->library.size() + 1;
    return 0;
}
int nvrtcGetPTX(Program *program, char *ptx) {
    strcpy(ptx, program->library.c_str());
    return 0;
}
int nvrtcDestroyProgram(Program **program) { return 0; }
int nvrtcVersion(int *major, int *minor) { return real<int (*)(int *, int *)>("nvrtcVersion")(major, minor); }
}
