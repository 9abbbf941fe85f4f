#!/bin/sh
# The script of `pronto run --each`: counts lines and words of one input file.
#
#   cd examples
#   pronto run --each inputs/*.txt --output '{stem}.out' -- ./job.sh {}
#
# Script and input lie in the working directory of their own instance, on whatever node took it.
set -eu
input=$1
output=${input%.*}.out
wc -lw <"$input" >"$output"
echo "$input: counted on $PRONTO_NODE"
