"""The GLSL programs of the renderer: one per material, since Mesa's llvmpipe computes both sides of a branch."""

COMMON = """#version 330
uniform vec3 key_dir, key_colour, fill_dir, fill_colour, sky, ground;
uniform mat4 shadow_matrix; uniform sampler2DShadow shadow_map; uniform float toon;
const vec3 CAMERA = vec3(0., 0., 14.);
float lit(vec3 p, vec3 n) {
  vec4 s = shadow_matrix * vec4(p + n * .04, 1.); return texture(shadow_map, s.xyz * .5 + vec3(.5, .5, .4985));
}
vec3 wrap(float d, vec3 soft) { return clamp((vec3(d) + soft) / (1. + soft), 0., 1.); }
vec3 steps(vec3 v) { return mix(v, smoothstep(.25, .31, v) * .6 + smoothstep(.74, .78, v) * .2 + .2, toon); }
vec3 finish(vec3 c) {  // highlights roll off; a display gamma of 2: a square root is much cheaper than a power
  return sqrt(clamp(1.35 * c / (1. + .45 * c), 0., 1.));
}
vec3 to_linear(vec3 c) { return c * c; }
"""

_PLACE = """
uniform mat4 project; uniform mat3 turn; uniform vec3 pivot, centre, shift;
vec3 place(vec3 v, float follow) { return mix(v, turn * (v - pivot) + pivot, follow) - centre + shift; }
"""

MESH_VERTEX = (
    "#version 330\n"
    + _PLACE
    + """
uniform float cloth_gap, neckline, neck_v;
in vec3 pos, nor, rest; in vec2 uv, skin_uv; in float follow, shade;
out vec3 p, n, q, local; out vec2 t, s; out float ao, under;
void main() {
  q = rest; t = uv; s = skin_uv; ao = shade; local = pos;
  under = neckline - neck_v * max(0., rest.z - abs(rest.x) * 2. + .1) - rest.y
    + length(vec2(rest.x, rest.z - .1)) - .75;
  p = place(pos + nor * cloth_gap * smoothstep(0., .06, under), follow);
  n = mix(nor, turn * nor, follow); gl_Position = project * vec4(p, 1.);
}
"""
)

_MESH_INPUT = "in vec3 p, n, q, local; in vec2 t, s; in float ao, under; out vec4 o;\n"

BODY_FRAGMENT = (
    COMMON
    + _MESH_INPUT
    + """
uniform sampler2D skin, masks, cloth; uniform vec3 lips; uniform float mouth_z, lip_gloss;
void main() {
  vec3 N = normalize(n), V = normalize(CAMERA - p);
  vec4 tex = texture(skin, s), m = texture(masks, t); float dressed = step(.02, under), inside = m.z;
  vec3 c = to_linear(mix(tex.rgb, lips * (.85 + .3 * tex.a), m.x * .85)), stuff = to_linear(texture(cloth, q.xy
    * .25).rgb);
  c = mix(c, vec3(.13, .025, .025), inside);
  c = mix(c, stuff * mix(.6, 1., smoothstep(.02, .1, under)), dressed);
  vec3 soft = mix(vec3(.42, .24, .18), vec3(.15), dressed);
  float spec = mix(tex.a * .3 + m.x * lip_gloss, .02, dressed) * (1. - .8 * inside);
  float shade = mix(ao, smoothstep(-.75, -.02, q.z - mouth_z), inside)
    * mix(mix(.6, 1., smoothstep(0., .25, -under)), 1., dressed);
  float key = lit(p, N);
  vec3 light = steps(wrap(dot(N, key_dir), soft) * key) * key_colour * mix(shade, 1., .55);
  light += wrap(dot(N, fill_dir), soft) * fill_colour * mix(shade, 1., .4) + mix(ground, sky, N.y * .5 + .5) * shade;
  float h = max(0., dot(N, normalize(key_dir + V))), f = max(0., dot(N, normalize(fill_dir + V)));
  float h2 = h * h, h4 = h2 * h2, h8 = h4 * h4, f2 = f * f, f4 = f2 * f2;
    float tight = h8 * h8 * h4, broad = f4 * f4 * f2;
  float rim = 1. - max(0., dot(N, V)); rim = rim * rim * rim * .25;
  vec3 shine = (spec * tight * key * key_colour + spec * .5 * broad * fill_colour) * (1. - toon) + rim * sky * (c
    + .05);
  o = vec4(finish(c * light + shine), 1.);
}
"""
)

EYE_FRAGMENT = (
    COMMON
    + _MESH_INPUT
    + """
uniform sampler2D noise_map; uniform vec3 iris, eye_left, eye_right, gaze; uniform float eye_radius, iris_size;
    uniform mat3 turn;
void main() {
  vec3 e = q.x > 0. ? eye_left : eye_right, d = normalize(local - e), V = normalize(CAMERA - p);
  float r = acos(clamp(dot(d, gaze), -1., 1.)), angle = atan(d.y - gaze.y, d.x - gaze.x);
  float ir = smoothstep(iris_size + .05, iris_size - .04, r);
  vec3 ic = to_linear(iris) * (.55 + 1.1 * texture(noise_map, vec2(angle * .8, r * .35)).r);
  ic *= mix(1.25, .22, smoothstep(iris_size * .62, iris_size, r)); ic = mix(vec3(.004), ic, smoothstep(.17, .23, r));
  vec3 white = vec3(.68, .64, .61) * mix(vec3(1.), vec3(.9, .55, .5), smoothstep(.7, 1.25, r));
  vec3 c = mix(white, ic, ir), N = normalize(turn * mix(d, gaze, .35 * ir));
  float lid = (local.y - e.y) / eye_radius, side = abs(local.x - e.x) / eye_radius;
  float shade = mix(.95, .3, smoothstep(.05, .55, lid)) * mix(1., .6, smoothstep(.35, .85, side));
  float key = mix(.5, 1., lit(p, N * 2.));
  vec3 light = (wrap(dot(N, key_dir), vec3(.35)) * key_colour * key + wrap(dot(N, fill_dir), vec3(.3))
    * fill_colour + mix(ground, sky, N.y * .5 + .5)) * shade;
  float glint = pow(max(0., dot(N, normalize(key_dir + V))), 140.) * 1.1 + pow(max(0., dot(N, normalize(fill_dir
    + V))), 90.) * .25;
  o = vec4(finish(c * light + glint * key), 1.);
}
"""
)

MOUTH_FRAGMENT = (
    COMMON
    + _MESH_INPUT
    + """
uniform float mouth_z, kind, teeth_tone, parted;  // kind: 0 upper teeth, 1 lower teeth, 2 tongue
void main() {
  vec3 N = normalize(n), V = normalize(CAMERA - p);
  float tooth = abs(fract(atan(q.x, q.z - mouth_z + .55) * 7.5) - .5);
  vec3 teeth = vec3(.66, .60, .50) * teeth_tone * (1. - .35 * smoothstep(.42, .5, tooth));
  float gum = kind < .5 ? smoothstep(6.71, 6.76, q.y) : smoothstep(6.56, 6.50, q.y);
  vec3 c = kind > 1.5 ? vec3(.34, .10, .10) : mix(teeth, vec3(.34, .10, .10), gum);
  float depth = smoothstep(-.6, .02, q.z - mouth_z + .05) * (kind < .5 ? .95 : .65) * parted;
  vec3 light = wrap(dot(N, key_dir), vec3(.8)) * key_colour * .8 + wrap(dot(N, fill_dir), vec3(.8)) * fill_colour
    + .6 * (sky + ground);
  float h = max(0., dot(N, normalize(key_dir + V)));
  o = vec4(finish((c * light + .12 * pow(h, 30.)) * depth), 1.);
}
"""
)

STRAND_VERTEX = (
    COMMON
    + _PLACE
    + """
uniform vec3 colour; uniform float shine;
in vec3 pos, tangent, outward, look; in float follow, width, across;
out vec3 body, gloss; out float x, strand;
void main() {
  // look: along the strand (0 root, 1 tip), random, occlusion. Light is computed at the vertices: they are fewer
  vec3 p = place(pos, follow), T = normalize(mix(tangent, turn
    * tangent, follow)), N = normalize(mix(outward, turn * outward, follow));
  vec3 V = normalize(CAMERA - p), own = to_linear(colour);
  float key = lit(p, N * 3.), tl = dot(T, key_dir), fl = dot(T, fill_dir);
  float diff = sqrt(max(0., 1. - tl * tl)) * clamp(.4 + .8 * dot(N, key_dir), 0., 1.) * mix(.3, 1., key);
  float diff2 = sqrt(max(0., 1. - fl * fl)) * clamp(.45 + .6 * dot(N, fill_dir), 0., 1.);
  float th = dot(T + N * (.3 * (look.y - .5)), normalize(key_dir + V));
  float sp = pow(max(0., 1. - th * th), 18.) * clamp(dot(N, key_dir) + .3, 0., 1.) * mix(.3, 1., key);
  vec3 light = steps(vec3(diff)) * key_colour + diff2 * fill_colour + mix(ground, sky, N.y * .5 + .5) * .8;
  body = own * (.85 + .3 * (look.y - .5)) * (.75 + .5 * look.x) * light * look.z;
  gloss = shine * sp * (1. - toon) * key_colour * (.9 * own + .09) * look.z;
  x = across; strand = look.y * 17.3;
  p += normalize(cross(T, CAMERA - p) + 1e-5) * width * across; gl_Position = project * vec4(p, 1.);
}
"""
)

STRAND_FRAGMENT = """#version 330
in vec3 body, gloss; in float x, strand; out vec4 o;
void main() {
  float fine = abs(fract(x * 1.3 + strand) * 2. - 1.);  // single hairs of a ribbon
  o = vec4(sqrt(clamp(body * (.84 + .32 * fine) + gloss * (.7 + .6 * fine), 0., 1.)), 1.);
}
"""

SOLID_VERTEX = (
    "#version 330\n"
    + _PLACE
    + """
in vec3 pos, nor, tint; in float follow; out vec3 p, n, c;
void main() { c = tint; p = place(pos, follow); n = mix(nor, turn * nor, follow);
    gl_Position = project * vec4(p, 1.); }
"""
)

SOLID_FRAGMENT = (
    COMMON
    + """
in vec3 p, n, c; out vec4 o;
void main() {
  vec3 N = normalize(n), V = normalize(CAMERA - p), H = normalize(key_dir + V); float key = lit(p, N);
  vec3 light = steps(wrap(dot(N, key_dir), vec3(.1)) * key) * key_colour + wrap(dot(N, fill_dir), vec3(.1))
    * fill_colour + mix(ground, sky, N.y * .5 + .5);
  o = vec4(finish(to_linear(c) * light + .35 * pow(max(0., dot(N, H)), 60.) * key), 1.);
}
"""
)

DEPTH_FRAGMENT = "#version 330\nvoid main() {}\n"

PICTURE_VERTEX = """#version 330
in vec2 corner; out vec2 t; void main() { t = corner * vec2(.5, -.5) + .5; gl_Position = vec4(corner, .9999, 1.); }
"""

PICTURE_FRAGMENT = """#version 330
uniform sampler2D picture; in vec2 t; out vec4 o; void main() { o = vec4(texture(picture, t).rgb, 1.); }
"""
