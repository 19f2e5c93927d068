# The image of every pod of rayjob.yaml: head, teachers, students and the pod that submits the job.
#   docker build -t REGISTRY/tutelage:0.1.0 . && docker push REGISTRY/tutelage:0.1.0
# For other CUDA versions, or none: --build-arg TORCH_FROM="--index-url <a PyTorch index>"
FROM python:3.11-slim-bookworm

# bash and wget: KubeRay starts Ray with the one and probes it with the other.
RUN apt-get -qq update \
    && apt-get -qq install -y --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 tutelage
WORKDIR /home/tutelage

# What is installed changes less often than the code: layers of their own.
ARG TORCH_FROM=""
COPY requirements.lock .
RUN python -m venv .venv
RUN .venv/bin/pip install -q --no-cache-dir "$(grep '^torch==' requirements.lock)" $TORCH_FROM
RUN .venv/bin/pip install -q --no-cache-dir -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY teachers teachers
COPY students students
COPY tune tune
RUN .venv/bin/pip install -q --no-cache-dir --no-deps --no-build-isolation .

ENV PATH=/home/tutelage/.venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
USER tutelage
