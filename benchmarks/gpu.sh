#!/bin/sh
# What needs a GPU, each part in one call of at most ten minutes; without arguments all of them, one after the other.
#
#   sh benchmarks/gpu.sh                       # or: sh benchmarks/gpu.sh kernels training inference
#   OUT=results PYTHON=python3 sh benchmarks/gpu.sh training
#
# kernels    the Triton kernels against their twins, compiled, and that no step waits for the GPU
# training   a step of the 83M network: float32, TF32, AMP, our bf16 against fairchem's AMP
# inference  energy and forces of a batch of slabs, as a batched relaxation asks for at each of its steps, float32
# precision  errors against float64, at all 12 layers
# graphs     ordinary and recorded steps and inferences, float32, TF32 and bf16, beside fairchem's in float32 and under AMP;
#            Equiformer on molecules; some six minutes
# sizes      a step and inference of the 122M and the 153M network, float32
# scaling    cost against atoms, neighbours, degree, layers, channels
#
# Tables, plots and JSON files go to OUT. The structures are synthetic slabs, so that nothing has to be downloaded; DATA
# names a folder of LMDBs instead. A part that fails or takes too long does not keep the others from running.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${OUT:-$root/benchmarks/results}")
python=${PYTHON:-python3}
data=${DATA:-synthetic}
limit=${LIMIT:-480}
cd "$root" || exit 2

step_time() {
    timeout "$limit" "$python" benchmarks/step_time.py --device cuda --threads 8 --data "$data" --out "$out" "$@"
}

part() {
    case $1 in
    kernels) timeout "$limit" "$python" -m pytest tests/nn/backends/triton tests/backbones/test_no_waiting.py -v ;;
    training) step_time --only step --batch 8 --steps 12 --precision fp32,bf16,amp,tf32 ;;
    inference) step_time --only inference --batch 16 --steps 12 ;;
    precision) timeout "$limit" "$python" benchmarks/precision.py --device cuda --layers 12 --data "$data" --out "$out" ;;
    graphs) timeout "$limit" "$python" benchmarks/graphs.py --data "$data" --out "$out" ;;
    sizes) step_time --size 122m,153m --batch 4 --steps 8 ;;
    scaling) timeout "$limit" "$python" benchmarks/scaling.py --full --device cuda --out "$out" ;;
    *) echo "benchmarks/gpu.sh: no part '$1'; parts are $all" >&2 && return 2 ;;
    esac
}

all="kernels training inference precision graphs sizes scaling"
[ $# -gt 0 ] || set -- $all
failed=""
for name; do
    echo "== $name"
    part "$name" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2 && exit 1; }
