#!/bin/sh
# Makes a private CA and a certificate for the host name "sandbox" in ./certificates, good for a
# month.
set -eu
mkdir -p certificates
cd certificates
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=sandbox CA" \
  -addext "keyUsage=critical,keyCertSign" -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=sandbox" \
  -keyout sandbox.key -out sandbox.csr
printf '%s\n' "subjectAltName=DNS:sandbox,DNS:localhost" "authorityKeyIdentifier=keyid" > extensions
openssl x509 -req -in sandbox.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
  -extfile extensions -out sandbox.pem
