# `make demo` and `make test` set up .venv by themselves; everything else is in CONTRIBUTING.md.
# TORCH_INDEX: where to take PyTorch from, for example https://download.pytorch.org/whl/cpu on a Linux machine without a GPU,
# where the default index would give the much larger CUDA build.
PYTHON ?= python3.11
TORCH_INDEX ?=
RUN = .venv/bin

.PHONY: setup demo test lint tiny claims bench-grpo bench-dpo bench-offline bench-control bench-tree clean

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv .venv
	$(RUN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(RUN)/pip install -q --no-deps -r requirements.lock
	$(RUN)/pip install -q --no-deps -e .
	touch $@

demo: setup
	$(RUN)/policyopt train grpo --problem arithmetic --policy tiny --budget 75-seconds

test: setup
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(RUN)/ruff check src tests benchmarks examples scripts
	$(RUN)/ruff format --check src tests benchmarks examples scripts
	$(RUN)/mypy

tiny: setup
	$(RUN)/python scripts/make_tiny.py

claims: setup
	$(RUN)/policyopt report --claims

bench-grpo: setup
	$(RUN)/pip install -q -c requirements.lock "trl>=1.0" "accelerate>=1.0"
	$(RUN)/python benchmarks/grpo_vs_trl.py

bench-dpo: setup
	$(RUN)/pip install -q -c requirements.lock "trl>=1.0" "accelerate>=1.0"
	$(RUN)/python benchmarks/dpo_vs_trl.py

# --no-deps: d3rlpy asks for an older gymnasium, which policyopt shall not be measured with
bench-offline: setup
	$(RUN)/pip install -q --no-deps d3rlpy==2.8.1 gym==0.26.2 gym-notices h5py scikit-learn joblib threadpoolctl narwhals structlog \
		colorama click dataclasses-json marshmallow typing-inspect mypy-extensions
	$(RUN)/python benchmarks/offline_vs_d3rlpy.py

# --no-deps: the environment of the tests stays as it is locked
bench-control: setup
	$(RUN)/pip install -q --no-deps stable-baselines3==2.9.2 cloudpickle
	$(RUN)/python benchmarks/control_vs_sb3.py

bench-tree: setup
	$(RUN)/python benchmarks/tree_sampling.py

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
