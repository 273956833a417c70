# Two commands for a newcomer: `make demo` and `make test`.

PYTHON := .venv/bin/python
RANK ?= 64

.PHONY: demo test check reference picture clean

demo: .venv/.installed  ## Cut a real fine-tuned model
	$(PYTHON) scripts/real_pair.py demo
	.venv/bin/svdcut truncate demo/base demo/finetuned -k $(RANK) -o demo/cut-$(RANK) --force

test: .venv/.installed-dev  ## Run the tests; TESTS='-m "long or not long"' for all of them
	$(PYTHON) -m pytest -n auto $(TESTS)

check: .venv/.installed-dev  ## Lint, types, layers, generated files
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/codespell
	$(PYTHON) scripts/generate_reference.py --check
	$(PYTHON) scripts/kinds_table.py --check
	$(PYTHON) scripts/refusals_table.py --check
	$(PYTHON) scripts/noise_table.py --check

reference: .venv/.installed-dev  ## Write man/ and the generated pages of docs/ anew
	$(PYTHON) scripts/generate_reference.py
	$(PYTHON) scripts/kinds_table.py
	$(PYTHON) scripts/refusals_table.py
	$(PYTHON) scripts/noise_table.py

picture: .venv/.installed-dev  ## Measure and draw the pictures of the documents anew
	$(PYTHON) scripts/real_pair.py demo
	$(PYTHON) scripts/spectrum_pictures.py demo
	$(PYTHON) scripts/agreement.py demo --out docs/agreement

.venv/.installed: pyproject.toml scripts/install.sh
	scripts/install.sh eval,plot
	@touch $@

.venv/.installed-dev: pyproject.toml scripts/install.sh
	scripts/install.sh dev
	@touch $@ .venv/.installed

clean:
	rm -rf .venv demo
