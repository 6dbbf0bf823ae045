"""List the packages: the rooms beside ``resq_tvm/`` install inside it."""

from setuptools import find_packages, setup

ROOMS = ("passes", "schedules", "targets")

setup(
    packages=[
        *find_packages(include=["resq_tvm", "resq_tvm.*"]),
        *(
            f"resq_tvm.{package}"
            for room in ROOMS
            for package in find_packages(include=[room, f"{room}.*"])
        ),
    ]
)
