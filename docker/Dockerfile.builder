# Builds releases inside the image that serves them: a plan runs only on the TensorRT that wrote it.
#   docker build -f docker/Dockerfile.builder -t bert-on-triton/builder .
ARG TRITON_TAG=26.08
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3

# The Python wheel of the very TensorRT that the image holds: the table in docs/deploying.md pairs them.
ARG TENSORRT_VERSION=11.2.1.2
WORKDIR /opt/bert
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY contract contract
COPY training training
COPY builders builders
COPY model_repository model_repository
COPY docker/tensorrt_version.py docker/tensorrt_version.py
RUN python3 -m pip install --no-cache-dir --break-system-packages --constraint constraints.txt \
        torch numpy pandas tokenizers safetensors huggingface-hub scikit-learn scipy matplotlib onnx onnxruntime openvino \
        ml_dtypes psutil tqdm tyro protobuf 'tritonclient[grpc,http]' \
    && python3 -m pip install --no-cache-dir --break-system-packages "tensorrt-cu13==${TENSORRT_VERSION}" \
    && python3 docker/tensorrt_version.py --expect "${TENSORRT_VERSION}"
ENV PYTHONPATH=/opt/bert PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN install -d -o 1000 -g 1000 /releases /models
USER 1000:1000
WORKDIR /releases
VOLUME ["/releases", "/models"]
ENTRYPOINT ["python3", "-m", "builders.build"]
CMD ["--help"]
